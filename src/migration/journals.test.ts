import { existsSync, mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ProcessIdentity } from "../sys/process-identity.js";
import { type DestinationRecord, Journal, journalPath, type Side, type SourceRecord } from "./journal.js";
import { ELSEWHERE, ENDED, pretendWriter } from "./journal.test.helper.js";
import { KEPT_DAYS } from "./journal-directory.js";
import { listJournals, pruneJournals, type Standing } from "./journals.js";
import { writeNote } from "./outliving.js";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "dirtmap-journals-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const FIRST = { source: "running", destination: "loading" };

/** A journal in this state, written by this process, or by one that differs from it. */
function journal(migration: string, side: Side, state: string, writer: Partial<ProcessIdentity> = {}): void {
  const made = Journal[side](directory, migration, "tls://there:1") as Journal<SourceRecord | DestinationRecord>;
  if (state !== FIRST[side]) made.record(state as SourceRecord | DestinationRecord);
  pretendWriter(made.path, writer);
}

const LONG_AFTER = Date.now() + (KEPT_DAYS + 1) * 86_400_000;

const cases: [Side, string, Partial<ProcessIdentity>, Standing, string][] = [
  ["source", "running", {}, "in-progress", "the machine runs here"],
  ["source", "running", ENDED, "over", "until its process ended"],
  ["source", "running", ELSEWHERE, "unknown", "can't be seen from here"],
  ["source", "given-up", {}, "waits", "paused"],
  ["source", "given-up", ENDED, "waits", "runs at tls://there:1 or nowhere"],
  ["source", "given-up", ELSEWHERE, "waits", "can't be seen from here"],
  ["source", "gone", {}, "over", "given up here for good"],
  ["source", "gone", ELSEWHERE, "over", "given up here for good"],
  ["destination", "loading", {}, "in-progress", "on its way"],
  ["destination", "ready", ENDED, "over", "never ran here and never will"],
  ["destination", "ready", ELSEWHERE, "unknown", "can't be seen from here"],
  ["destination", "discarded", {}, "over", "never ran here and never will"],
  ["destination", "running", {}, "in-progress", "the machine runs here"],
  ["destination", "running", ENDED, "over", "until its process ended"],
];

describe("a journal", () => {
  it.each(cases)("of a %s in '%s', its process %j, is %s: %s", (side, state, writer, standing, says) => {
    journal("m1", side, state, writer);
    expect(listJournals(directory)).toMatchObject([
      { migration: "m1", side, standing, says: expect.stringContaining(says), record: { state } },
    ]);
    // Whatever may still need a decision stays, however old it is.
    pruneJournals(directory, LONG_AFTER);
    expect(existsSync(journalPath(directory, "m1", side))).toBe(standing !== "over");
  });

  it("that waits has the commands that can work: a machine whose process has ended can't be resumed", () => {
    journal("m1", "source", "given-up");
    journal("m2", "source", "given-up", ENDED);
    const commands = new Map(listJournals(directory).map((each) => [each.migration, each.commands]));
    const where = `--journal ${directory}`;
    expect(commands.get("m1")).toEqual([`dirtmap resume m1 ${where}`, `dirtmap abort m1 ${where}`]);
    expect(commands.get("m2")).toEqual([`dirtmap abort m2 ${where}`]);
  });

  it("of a machine that outlives its process waits for it, and can be resumed", () => {
    journal("m1", "source", "running", ENDED);
    journal("m2", "source", "given-up", ENDED);
    journal("m3", "source", "running");
    for (const id of ["m1", "m2", "m3"]) writeNote(directory, id, { of: "a guest" });
    const where = `--journal ${directory}`;
    const found = new Map(listJournals(directory).map((each) => [each.migration, each]));
    expect(found.get("m1")).toMatchObject({ standing: "waits", commands: [`dirtmap resume m1 ${where}`] });
    expect(found.get("m2")).toMatchObject({
      standing: "waits",
      commands: [`dirtmap resume m2 ${where}`, `dirtmap abort m2 ${where}`],
    });
    expect(found.get("m3")).toMatchObject({ standing: "in-progress", commands: [] });
    expect(pruneJournals(directory, LONG_AFTER)).toEqual([]);
  });

  it("that can't be read is listed with the reason, and never removed", () => {
    writeFileSync(journalPath(directory, "m1", "source"), "?");
    expect(listJournals(directory)).toMatchObject([
      { migration: "m1", standing: "unknown", record: null, says: expect.stringContaining("not a whole journal") },
    ]);
    expect(pruneJournals(directory, LONG_AFTER)).toEqual([]);
  });
});

describe("pruning", () => {
  it(`keeps what is over for ${KEPT_DAYS} days`, () => {
    journal("m1", "source", "gone");
    journal("m1", "destination", "running", ENDED);
    expect(pruneJournals(directory, LONG_AFTER - 2 * 86_400_000)).toEqual([]);
    expect(pruneJournals(directory, LONG_AFTER).sort()).toEqual(["m1.destination.json", "m1.source.json"]);
  });

  it("removes a machine's note with its journal, and one that has none", () => {
    journal("m1", "source", "gone");
    journal("m2", "source", "running");
    for (const id of ["m1", "m2", "m3"]) writeNote(directory, id, {});
    expect(pruneJournals(directory, LONG_AFTER).sort()).toEqual([
      "m1.machine.json",
      "m1.source.json",
      "m3.machine.json",
    ]);
  });

  it("removes sockets and half-made journals of processes that have ended, and of no others", () => {
    journal("m1", "source", "given-up", ENDED);
    journal("m2", "source", "given-up");
    const old = new Date(Date.now() - 3_600_000);
    for (const file of ["m1.sock", "m2.sock", "m3.sock", "m4.sock"]) writeFileSync(join(directory, file), "");
    utimesSync(join(directory, "m3.sock"), old, old);
    // No process has a pid that large: pid_max is at most 2^22.
    for (const pid of [9_999_999, process.pid]) writeFileSync(join(directory, `.m5.source.json.${pid}.tmp`), "");
    writeFileSync(join(directory, "notes.txt"), "not ours");
    const left = [`.m5.source.json.${process.pid}.tmp`, "m1.source.json", "m2.sock", "m2.source.json"];
    expect(pruneJournals(directory).sort()).toEqual([".m5.source.json.9999999.tmp", "m1.sock", "m3.sock"]);
    expect(readdirSync(directory).sort()).toEqual([...left, "m4.sock", "notes.txt"]);
  });

  it("of a directory that is not there is nothing", () => {
    expect(pruneJournals(join(directory, "none"))).toEqual([]);
  });
});
