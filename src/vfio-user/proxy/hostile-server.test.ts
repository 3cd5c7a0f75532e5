import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { DirtmapError } from "../../errors.js";
import { HostileServer, type Mischief } from "../client/hostile-server.test.helper.js";
import { descriptors, HONEST_LIMIT_MS, LIMIT_MS, MESSAGES, mischief, use } from "../client/hostile-use.test.helper.js";
import type { DmaMode } from "../server/client-memory.js";
import { proxyDevice } from "./proxy.js";

/*
 * A proxy between a client and a server that says what can't be. What concerns the client alone reaches it, and is its to refuse.
 */

const folder = mkdtempSync(join(tmpdir(), "dirtmap-proxy-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Messages of the server until the proxy is ready. One that drops one of these holds up the start for its whole limit. */
const GREETING = 8;

/** Has a client use the server's device by way of a proxy; null: the proxy would have none of that server. */
async function useProxied(
  mischiefs: readonly (readonly [number, Mischief])[],
  dma: DmaMode,
  limitMs: number,
): Promise<string[] | null> {
  await using server = await HostileServer.start(new Map(mischiefs));
  const path = join(folder, "device");
  try {
    await using proxy = await proxyDevice({ server: server.path, path, dma });
    return await use(proxy.path, limitMs);
  } catch (error) {
    if (error instanceof DirtmapError && error.code !== "THREAD_TIMEOUT") return null;
    throw error;
  }
}

describe.runIf(process.platform === "linux").each(["auto", "messages"] as const)(
  "a proxy before a server that says what can't be (--dma %s)",
  (dma) => {
    it("passes on all that one says that says what it should", async () => {
      const refused = ["outside: EINVAL", "data: ENOMSG", "data: EINVAL", "STOP: EINVAL", "RUNNING: EINVAL"];
      expect([...new Set(await useProxied([], dma, HONEST_LIMIT_MS))]).toEqual(refused);
    });

    it("lives, lets every call of its client end in bounded time, and keeps nothing of it", async () => {
      // Whatever a process opens once, and keeps, it has by then: of a proxy that serves, and of one that doesn't.
      await useProxied([], dma, HONEST_LIMIT_MS);
      await useProxied([[0, { kind: "header", field: "msg_id", value: 0 }]], dma, HONEST_LIMIT_MS);
      const one = fc
        .tuple(fc.nat(MESSAGES), mischief)
        .map(([at, what]): [number, Mischief] => [what.kind === "drop" ? at + GREETING : at, what]);
      await fc.assert(
        fc.asyncProperty(fc.array(one, { minLength: 1, maxLength: 4 }), async (mischiefs) => {
          // Of this run alone: what another kept must not have this one shrunk in its place.
          const before = readdirSync("/proc/self/fd").length;
          await useProxied(mischiefs, dma, LIMIT_MS);
          expect(await descriptors(before)).toBeLessThanOrEqual(before);
        }),
        { numRuns: 40 },
      );
    }, 240_000);
  },
);
