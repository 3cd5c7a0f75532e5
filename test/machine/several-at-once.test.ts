import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { openStore } from "../../src/evidence/store/store.js";
import { CommandLine } from "../support/command-line.js";
import { frameProxy, says } from "../support/frame-proxy.js";
import { statesOf } from "../support/journal-states.js";

/* Several migrations at once on one computer share a folder of journals, a folder of feeds and a store. */

const folder = mkdtempSync(join(tmpdir(), "dirtmap-cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const opened: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
});
function kept<T extends AsyncDisposable>(each: T): T {
  opened.push(each);
  return each;
}

it("several sources and destinations at once don't touch each other's machines, journals, sockets or reports", {
  timeout: 300_000,
}, async () => {
  const journals = join(folder, "journals");
  const store = join(folder, "evidence.db");
  const commands = new CommandLine(folder, journals);
  // One waits for a decision all the while, as its GO gets lost.
  const lost = await commands.receive();
  kept(lost.child);
  const proxy = await frameProxy(lost.port, {
    toDestination: (frame) => (says(frame, "GO") ? "cut" : frame),
  });
  kept({ [Symbol.asyncDispose]: async () => proxy.close() });
  const waiting = kept(commands.migrate("--store", store, "--to", `tcp://127.0.0.1:${proxy.port}`));
  const [, waits] = await waiting.complained(/"migration":"([0-9a-f]+)"/);

  const pairs = await Promise.all(
    [0, 1].map(async () => {
      const { child, port } = await commands.receive();
      kept(child);
      return {
        destination: child,
        source: kept(commands.migrate("--store", store, "--to", `tcp://127.0.0.1:${port}`)),
      };
    }),
  );
  for (const { source, destination } of pairs) {
    expect(await source.ended, source.errors).toBe(EXIT_CODES.done.code);
    const { migration } = await source.said("result");
    expect(await source.said("result")).toMatchObject({ result: "completed", verified: true, warnings: [] });
    expect(await destination.said("event", "running")).toMatchObject({ migration });
    expect(statesOf(journals, String(migration), "source")).toEqual(["running", "given-up", "gone"]);
    expect(statesOf(journals, String(migration), "destination")).toEqual(["loading", "ready", "running"]);
  }

  // The one that waits has its socket still, and hears the operator.
  const list = kept(commands.run("list"));
  const { migrations } = (await list.said("migrations")) as { migrations: Record<string, unknown>[] };
  expect(migrations.filter(({ standing }) => standing === "waits")).toMatchObject([{ migration: waits, alive: true }]);
  expect(readdirSync(journals).filter((file) => !file.endsWith(".json"))).toEqual([`${waits}.sock`]);
  expect(await kept(commands.run("resume", waits)).ended).toBe(EXIT_CODES.done.code);
  expect(await waiting.ended).toBe(EXIT_CODES.failed.code);

  using runs = openStore(store);
  expect(
    runs
      .runs()
      .map(({ result }) => result)
      .sort(),
  ).toEqual(["completed", "completed", "failed"]);
});
