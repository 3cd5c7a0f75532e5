import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import sqlite from "node-sqlite3-wasm";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { fakeReport } from "../../migration/fake-report.test.helper.js";
import { fakeBenchmark, fakeDevice } from "../recommend/fake-benchmark.test.helper.js";
import { MIGRATIONS, STORE_VERSION } from "./schema.js";
import { defaultStorePath, type NewRun, openStore } from "./store.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-store-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let path = "";
let files = 0;
beforeEach(() => {
  path = join(folder, `${files++}.db`);
});

const RUN: NewRun = {
  kind: "migration",
  name: "0123abcd",
  scenario: "mixed",
  host: "emulated",
  startedAt: "2026-01-02T03:04:05.000Z",
  result: "completed",
  header: { devices: [{ id: "vf0" }] },
  report: fakeReport({ totalMs: 12.5, downtimeMs: null }),
  reads: [
    {
      type: "read",
      atMs: 1,
      round: 0,
      elapsedMs: 1,
      owners: { vf0: { reported: 6, exclusive: 6, readMs: 0.5, heat: [1, 2, 3] } },
    },
  ],
  conditions: { bandwidth: null, channels: 2 },
};
const RESULT = fakeBenchmark([fakeDevice("vf0", [{ tracker: "device" }])]);
const BENCHMARK = {
  kind: "trackers",
  host: "emulated",
  scenario: "mixed",
  machine: RESULT.machine,
  takenAt: "2026-01-02T03:04:05.000Z",
  result: RESULT,
};

/** A process that has the store's module, and runs this with `store` and `path`. */
function process_(code: string) {
  const module = fileURLToPath(new URL("./store.js", import.meta.url));
  const program = `const { openStore } = await import(${JSON.stringify(module)}); const path = ${JSON.stringify(path)}; ${code}`;
  return spawn(process.execPath, ["--input-type=module", "-e", program], { stdio: ["ignore", "pipe", "inherit"] });
}

/** A database made by SQL, past the store. */
function database(sql: string): void {
  const db = new sqlite.Database(path);
  db.exec(`PRAGMA locking_mode = EXCLUSIVE; ${sql}`);
  db.close();
}

describe("the store", () => {
  it("gives back what it keeps, after it was closed and opened again", () => {
    {
      using store = openStore(path);
      expect([store.saveRun(RUN), store.saveRun({ ...RUN, name: "second" })]).toEqual([1, 2]);
      expect(store.saveBenchmark(BENCHMARK)).toBe(1);
    }
    using store = openStore(path);
    const { header: _, report: __, reads: ___, conditions: ____, ...summary } = RUN;
    expect(store.run(1)).toEqual({ ...RUN, id: 1, totalMs: 12.5, downtimeMs: null });
    expect(store.runs()).toEqual([
      { ...summary, name: "second", id: 2, totalMs: 12.5, downtimeMs: null },
      { ...summary, id: 1, totalMs: 12.5, downtimeMs: null },
    ]);
    expect(store.runs({ before: 2 })).toMatchObject([{ id: 1 }]);
    expect(store.runs({ limit: 1 })).toMatchObject([{ id: 2 }]);
    expect(store.benchmark(1)).toEqual({ ...BENCHMARK, id: 1 });
    expect(store.benchmarks({ kind: "designs" })).toEqual([]);
    expect(store.benchmarks({ kind: "trackers" })).toMatchObject([{ id: 1, kind: "trackers" }]);
  });

  it("keeps any text and any numbers as they were", () => {
    using store = openStore(path);
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), fc.jsonValue(), (text, value) => {
        const clean = text.replaceAll("\0", "");
        // What is kept is JSON to the store, whatever its type.
        const kept = { report: { ...RUN.report, value }, reads: [{ value } as never] };
        const id = store.saveRun({ ...RUN, name: clean, ...kept });
        const plain = JSON.parse(JSON.stringify(value));
        expect(store.run(id)).toMatchObject({ name: clean, report: { value: plain }, reads: [{ value: plain }] });
      }),
      { numRuns: 30 },
    );
  });

  it("is for its owner alone, as is its folder", () => {
    path = join(folder, "new", "folder.db");
    openStore(path)[Symbol.dispose]();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(statSync(join(folder, "new")).mode & 0o777).toBe(0o700);
  });

  it("lies where the XDG directories say", () => {
    expect(defaultStorePath()).toBe(join(process.env.XDG_DATA_HOME ?? "", "dirtmap", "evidence.db"));
  });

  it("says which runs there are when asked for one that is not", () => {
    using store = openStore(path);
    expect(() => store.run(7)).toThrowError(/no run 7/);
    store.saveRun(RUN);
    expect(() => store.run(7)).toThrowError(
      expect.objectContaining({ code: "NO_SUCH_RUN", remedy: expect.stringMatching(/^it has 1;/) }),
    );
    expect(() => store.benchmark(7)).toThrowError(expect.objectContaining({ code: "NO_SUCH_BENCHMARK" }));
  });
});

describe("a store that several use", () => {
  it("has the rows of both processes that wrote at once", async () => {
    const writer = `for (let i = 0; i < 25; i++) { const store = openStore(path); store.saveRun(${JSON.stringify(RUN)}); store[Symbol.dispose](); }`;
    const codes = await Promise.all([process_(writer), process_(writer)].map((child) => once(child, "exit")));
    expect(codes.map(([code]) => code)).toEqual([0, 0]);
    using store = openStore(path);
    expect(store.runs().map(({ id }) => id)).toEqual(Array.from({ length: 50 }, (_, i) => 50 - i));
  });

  it("is refused, with what to do, while another has it", () => {
    using _store = openStore(path);
    expect(() => openStore(path, { waitMs: 20 })).toThrowError(
      expect.objectContaining({ code: "STORE_BUSY", message: expect.stringContaining(path) }),
    );
  });

  it("loses nothing that was kept, and nothing half, when a process is killed while it writes", async () => {
    // Rows larger than SQLite's cache, so that pages of unfinished transactions reach the disk.
    const writer = `
      const store = openStore(path);
      const run = ${JSON.stringify(RUN)};
      for (;;) {
        const id = store.saveRun({ ...run, report: { ...run.report, ballast: "x".repeat(6e6), end: "whole" } });
        process.stdout.write(id + " ");
      }`;
    for (const killAfter of [1, 2, 4]) {
      const child = process_(writer);
      let said = "";
      child.stdout.on("data", (data) => {
        said += data;
        if (said.split(" ").length > killAfter) child.kill("SIGKILL");
      });
      await once(child, "close");
      expect(readdirSync(folder)).toContain(`${files - 1}.db.lock`);
      using store = openStore(path);
      const kept = said.trim().split(" ").map(Number);
      const runs = store.runs();
      expect(runs.map(({ id }) => id)).toEqual(expect.arrayContaining(kept));
      expect(store.run(runs[0].id).report).toMatchObject({ end: "whole" });
      expect(readdirSync(folder).filter((name) => name.startsWith(`${files - 1}.db`))).not.toContain(
        `${files - 1}.db-journal`,
      );
    }
  });
});

describe("a file that is no store of this version", () => {
  it("is brought up to date from version 1, with all that it has", () => {
    const values = `'migration', 'old', 'mixed', 'emulated', '2026-01-01T00:00:00Z', 'completed', '{"devices":[]}'`;
    // gzip of "[]"
    const empty = "1f8b0800000000000003 8b8e050029 bb4c0d 02000000".replaceAll(" ", "");
    database(`${MIGRATIONS[0]}
      INSERT INTO run (kind, name, scenario, host, started_at, result, header, report, reads)
        VALUES (${values}, '{"totalMs":3.5,"downtimeMs":1}', x'${empty}');
      INSERT INTO benchmark (kind, host, scenario, machine, taken_at, result)
        VALUES ('trackers', 'emulated', 'mixed', '{}', '2026-01-01T00:00:00Z', '{"old":true}');
      PRAGMA application_id = 0x44697274; PRAGMA user_version = 1;`);
    using store = openStore(path);
    expect(store.runs()).toMatchObject([{ id: 1, name: "old", totalMs: 3.5, downtimeMs: 1 }]);
    expect(store.run(1)).toMatchObject({ header: { devices: [] }, reads: [], conditions: null });
    expect(store.benchmark(1).result).toEqual({ old: true });
  });

  it("is brought up to date from version 2, as Dirtmap 0.1 wrote it: conditions were not recorded", () => {
    copyFileSync(fileURLToPath(new URL("../../../../test/fixtures/store-v2.db", import.meta.url)), path);
    {
      using store = openStore(path);
      expect(store.runs()).toMatchObject([{ id: 1, name: "0123abcd", totalMs: 12.5, downtimeMs: null }]);
      const report = { totalMs: 12.5, downtimeMs: null, rounds: [] };
      expect(store.run(1)).toMatchObject({ header: RUN.header, report, conditions: null });
      expect(store.benchmark(1)).toMatchObject({ kind: "trackers", machine: { cpu: "one" } });
      expect(store.saveRun(RUN)).toBe(2);
    }
    using store = openStore(path);
    expect(store.run(2).conditions).toEqual(RUN.conditions);
  });

  it("is refused and left alone where it is of a newer version", () => {
    openStore(path)[Symbol.dispose]();
    database(`PRAGMA user_version = ${STORE_VERSION + 1}`);
    expect(() => openStore(path)).toThrowError(
      expect.objectContaining({
        code: "STORE_TOO_NEW",
        message: expect.stringMatching(`version ${STORE_VERSION + 1}`),
        remedy: expect.stringMatching(/^upgrade Dirtmap/),
      }),
    );
    expect(() => openStore(path)).toThrowError(expect.objectContaining({ code: "STORE_TOO_NEW" }));
  });

  const unusable: Record<string, () => void> = {
    text: () => writeFileSync(path, "machine: of somebody else's\n".repeat(99)),
    "another program's database": () => database("CREATE TABLE theirs (a); PRAGMA user_version = 99"),
    "a folder": () => mkdirSync(path),
  };
  for (const [what, make] of Object.entries(unusable)) {
    it(`is refused where it is ${what}, and nobody stays locked out`, () => {
      make();
      const refusal = expect.objectContaining({ code: "NO_STORE", message: expect.stringContaining(path) });
      expect(() => openStore(path)).toThrowError(refusal);
      expect(() => openStore(path)).toThrowError(refusal);
    });
  }

  it("is told of as damaged where it was cut off", () => {
    {
      using store = openStore(path);
      for (let i = 0; i < 20; i++) store.saveRun({ ...RUN, header: { ballast: "x".repeat(9000) } });
    }
    truncateSync(path, 3 * 4096);
    const use = () => {
      using store = openStore(path);
      for (let id = 1; id <= 20; id++) store.run(id);
    };
    expect(use).toThrowError(expect.objectContaining({ code: expect.stringMatching(/^(NO_STORE|STORE_FAILED)$/) }));
  });
});
