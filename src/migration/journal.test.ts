import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { UsageError } from "../errors.js";
import { Journal, journalPath, mayRun, newMigrationId, readJournal } from "./journal.js";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "dirtmap-journal-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

describe("a journal", () => {
  it("holds the last state that was recorded, for each side apart", () => {
    const source = Journal.source(directory, "m1", "tls://there:1");
    const destination = Journal.destination(directory, "m1", "a source");
    expect(readJournal(directory, "m1", "source")).toMatchObject({ state: "running", peer: "tls://there:1" });
    source.record("given-up");
    destination.record("ready");
    expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
    expect(readJournal(directory, "m1", "destination")?.state).toBe("ready");
    expect(readdirSync(directory).sort()).toEqual(["m1.destination.json", "m1.source.json"]);
  });

  it("makes its directory, and says which one it can't write", () => {
    Journal.source(join(directory, "a", "b"), "m1", "x");
    expect(readJournal(join(directory, "a", "b"), "m1", "source")).not.toBeNull();
    writeFileSync(join(directory, "file"), "");
    expect(() => Journal.source(join(directory, "file"), "m1", "x")).toThrow(UsageError);
    expect(() => Journal.source(join(directory, "file"), "m1", "x")).toThrow(/can't be written/);
  });

  it("is not begun again over one that is there, whatever a source says its id is", () => {
    Journal.destination(directory, "m1", "x").record("running");
    expect(() => Journal.destination(directory, "m1", "y")).toThrow(/already/);
    expect(readJournal(directory, "m1", "destination")?.state).toBe("running");
  });

  it("stands as it was where a crash left a half-written successor", () => {
    const journal = Journal.source(directory, "m1", "x");
    writeFileSync(`${journal.path}.4711.tmp`, '{"schemaVersion":1,"mig');
    expect(readJournal(directory, "m1", "source")?.state).toBe("running");
  });

  it("stands as it was where a crash tore the record that was being written", () => {
    const journal = Journal.source(directory, "m1", "x");
    journal.record("given-up");
    const whole = readFileSync(journal.path);
    journal.record("gone");
    const after = readFileSync(journal.path);
    expect(after.length).toBe(whole.length);
    for (const bytes of [1, 20, 100]) {
      const torn = Buffer.from(whole);
      after.copy(torn, 2 * 2048, 2 * 2048, 2 * 2048 + bytes);
      writeFileSync(journal.path, torn);
      const record = readJournal(directory, "m1", "source");
      expect(record?.state).toBe("given-up");
      if (record === null) throw new Error("no record");
      Journal.reopenSource(directory, record).record("gone");
      expect(readJournal(directory, "m1", "source")?.state).toBe("gone");
    }
  });

  it("can be gone on with without recording anything in between", () => {
    Journal.source(directory, "m1", "x").record("given-up");
    const record = readJournal(directory, "m1", "source");
    if (record === null) throw new Error("no record");
    const again = Journal.reopenSource(directory, record);
    expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
    again.record("gone");
    expect(readJournal(directory, "m1", "source")?.state).toBe("gone");
  });

  it.each(["", "{}", "null", '{"schemaVersion":1,"state":"running"}', `"${"x".repeat(20_000)}"`])(
    "that reads %.40j is not concluded from",
    (text) => {
      writeFileSync(journalPath(directory, "m1", "source"), text);
      expect(() => readJournal(directory, "m1", "source")).toThrow(/not a migration's journal/);
    },
  );

  it("that is not there is null", () => {
    expect(readJournal(directory, "m1", "source")).toBeNull();
  });

  it("lets a side run on no other word than `running`", () => {
    const source = Journal.source(directory, "m1", "x");
    const runs = () => {
      const record = readJournal(directory, "m1", "source");
      return record !== null && mayRun(record);
    };
    expect(runs()).toBe(true);
    source.record("given-up");
    expect(runs()).toBe(false);
    source.record("gone");
    expect(runs()).toBe(false);
  });
});

it("makes ids that journals and messages take", () => {
  expect(newMigrationId()).toMatch(/^[0-9a-f]{8}$/);
});
