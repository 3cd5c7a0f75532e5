import { readdirSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { HostileServer } from "./hostile-server.test.helper.js";
import { descriptors, HONEST_LIMIT_MS, LIMIT_MS, MESSAGES, mischief, use } from "./hostile-use.test.helper.js";

describe.runIf(process.platform === "linux")("a client of a server that says what can't be", () => {
  it("is refused nothing by one that says what it should, but for what it should refuse", async () => {
    await using server = await HostileServer.start(new Map());
    // What is written while it resumes is no state, and in ERROR it stays until it is reset.
    const refused = ["outside: EINVAL", "data: ENOMSG", "data: EINVAL", "STOP: EINVAL", "RUNNING: EINVAL"];
    expect([...new Set(await use(server.path, HONEST_LIMIT_MS))]).toEqual(refused);
  });

  it("ends every call with an answer or a clear error in bounded time, and keeps nothing of it", async () => {
    const before = await (async () => {
      await using server = await HostileServer.start(new Map());
      await use(server.path, HONEST_LIMIT_MS);
      return readdirSync("/proc/self/fd").length;
    })();
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(MESSAGES), mischief), { minLength: 1, maxLength: 4 }),
        async (mischiefs) => {
          {
            await using server = await HostileServer.start(new Map(mischiefs));
            await use(server.path, LIMIT_MS);
          }
          expect(await descriptors(before)).toBeLessThanOrEqual(before);
        },
      ),
      { numRuns: 120 },
    );
  }, 240_000);
});
