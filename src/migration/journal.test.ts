import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { UsageError } from "../errors.js";
import { thisProcess } from "../sys/process-identity.js";
import { Journal, journalPath, newMigrationId, readJournal } from "./journal.js";

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

  it.each(["", "{}", "null", '{"schemaVersion":2,"state":"running"}', `"${"x".repeat(20_000)}"`])(
    "that reads %.40j is not concluded from",
    (text) => {
      writeFileSync(journalPath(directory, "m1", "source"), text);
      expect(() => readJournal(directory, "m1", "source")).toThrow(/is not a whole journal/);
      writeFileSync(journalPath(directory, "m1", "source"), text.padEnd(16_384).slice(0, 16_384));
      expect(() => readJournal(directory, "m1", "source")).toThrow(/is not this migration's journal/);
    },
  );

  it.each([2048, 4096, 16_383])("that is cut short, to %d bytes, is not concluded from", (bytes) => {
    const { path } = Journal.source(directory, "m1", "x");
    truncateSync(path, bytes);
    expect(() => readJournal(directory, "m1", "source")).toThrow(
      new RegExp(`is not a whole journal: it has ${bytes} of 16384 bytes`),
    );
  });

  it("that was copied under another migration's name is not concluded from", () => {
    copyFileSync(Journal.source(directory, "m1", "x").path, journalPath(directory, "m2", "source"));
    expect(() => readJournal(directory, "m2", "source")).toThrow(/not this migration's journal/);
  });

  it.each([
    [1, undefined, /an older Dirtmap's: it has version 1, and dirtmap [\d.]+ reads 2$/],
    [3, "dirtmap 9.9.9", /a newer Dirtmap \(dirtmap 9\.9\.9\)'s: it has version 3, and dirtmap [\d.]+ reads 2$/],
    [3, "\u001b[2J", /a newer Dirtmap \(\\u\{1b\}\[2J\)'s/],
  ])("of version %d is refused in one line that says whose it is, and what to do", (version, software, message) => {
    const first = JSON.stringify({ schemaVersion: version, ...(software === undefined ? {} : { software }), more: 1 });
    writeFileSync(journalPath(directory, "m1", "source"), first.padEnd(2047) + "\n".padEnd(30_000));
    const refusal = { code: "JOURNAL_VERSION", message: expect.stringMatching(message) };
    expect(() => readJournal(directory, "m1", "source")).toThrow(
      expect.objectContaining({ ...refusal, remedy: "decide with the Dirtmap that wrote it, then remove the file" }),
    );
  });

  it("names the process that wrote it, so that another of the same pid isn't taken for it", () => {
    Journal.source(directory, "m1", "x");
    expect(readJournal(directory, "m1", "source")?.process).toEqual(thisProcess());
  });

  it("takes no id that leads out of its directory", () => {
    expect(() => readJournal(directory, "../m1", "source")).toThrow(UsageError);
  });

  it("that is not there is null", () => {
    expect(readJournal(directory, "m1", "source")).toBeNull();
  });

  it("records nothing after `gone`: what was decided binds", () => {
    const source = Journal.source(directory, "m1", "x");
    source.record("given-up");
    source.record("gone");
    expect(() => source.record("running")).toThrow(expect.objectContaining({ code: "DECIDED" }));
    expect(readJournal(directory, "m1", "source")?.state).toBe("gone");
  });
});

describe("without room for all of it", () => {
  /** What a process prints whose files may have at most 4 KiB each. */
  const limited = (program: string) => {
    const module = new URL("./journal.js", import.meta.url).href;
    const script = `import { Journal } from ${JSON.stringify(module)};
      try { ${program} } catch (error) { console.log(error.code, error.remedy ?? "", String(error)) }`;
    const node = [process.execPath, "--input-type=module", "-e", script];
    return spawnSync("bash", ["-c", 'ulimit -f 4; exec "$@"', "bash", ...node], { cwd: directory, encoding: "utf8" });
  };

  it("a journal is not begun, and nothing is left of it", () => {
    const { stdout } = limited(`Journal.source(".", "m1", "x")`);
    expect(stdout).toMatch(/^JOURNAL .*16 KiB of room.* can't be written: EFBIG/);
    expect(readdirSync(directory)).toEqual([]);
  });

  it("a record is not taken for one, and the journal stands as it was", () => {
    const journal = Journal.source(directory, "m1", "x");
    journal.record("given-up");
    // The third slot is beyond what can be written.
    const { stdout } = limited(`Journal.reopenSource(".", { migration: "m1", peer: "x" }).record("gone")`);
    expect(stdout).toMatch(/EFBIG/);
    expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
  });
});

it("makes ids that journals and messages take", () => {
  expect(newMigrationId()).toMatch(/^[0-9a-f]{8}$/);
});
