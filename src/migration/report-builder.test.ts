import { describe, expect, it } from "vitest";
import { DirtmapError } from "../errors.js";
import { DeviceError } from "./device-error.js";
import { Opened } from "./opened.js";
import { PeerAborted } from "./peer.js";
import type { RoundReport } from "./report.js";
import { ReportBuilder } from "./report-builder.js";

const NOTHING = { devices: [], stateBytes: 0 };
const begun = (deviceMs = 10_000) =>
  new ReportBuilder({ migration: "m1", design: "split", policy: "iommu-first", predicted: null }, deviceMs);
const round = (bytes: number): RoundReport => ({
  round: 0,
  phase: "pre-copy",
  pages: 1,
  zeroPages: 0,
  bytes,
  ms: 1.23456,
  remaining: 0,
  byDevice: {},
});
const memory = (pagesDifferent: number) => ({ pagesCompared: 8, pagesDifferent, firstAddresses: [], coveredBy: [] });

describe("a migration's report", () => {
  it("counts what rounds and devices' states sent", () => {
    const report = begun();
    report.round(round(100));
    report.round(round(20));
    expect(report.end("completed", { devices: [], stateBytes: 3 })).toMatchObject({
      bytes: 123,
      rounds: [{ ms: 1.235 }, { ms: 1.235 }],
    });
  });

  it("has a downtime only if the machine was paused and ran again", () => {
    const never = begun();
    never.resumed(performance.now());
    expect(never.end("cancelled", NOTHING).downtimeMs).toBeNull();
    const still = begun();
    still.paused();
    expect(still.end("indeterminate", NOTHING).downtimeMs).toBeNull();
    const back = begun();
    back.paused();
    back.resumed(performance.now() + 50);
    expect(back.end("completed", NOTHING).downtimeMs).toBeGreaterThanOrEqual(50);
  });

  it.each([
    ["nothing was compared", null, 0, null],
    ["the memories are equal and all stamps whole", 0, 0, true],
    ["a page differs", 1, 0, false],
    ["a stamp is missing", 0, 1, false],
  ])("says of `verified`, if %s: %s pages, %s stamps: %s", (_, pages, stamps, verified) => {
    const report = begun();
    if (pages !== null) report.compared(memory(pages));
    const problems = stamps === 0 ? [] : [{ owner: "dev0", kind: "lost", count: stamps }];
    report.audited({ resumeMs: 1, stamps: { checked: 9, problems }, written: {} });
    expect(report.end("completed", NOTHING).verified).toBe(verified);
  });

  it.each([
    ["of no kind", new Error("odd"), { code: "INTERNAL", message: "odd" }],
    [
      "with a remedy",
      new DirtmapError("no", { code: "X", remedy: "do y" }),
      { code: "X", message: "no", remedy: "do y" },
    ],
    [
      "of a device here",
      new DeviceError("dev0", "go to STOP", { code: "DEVICE_FAILED", cause: new Error("stuck") }),
      { code: "DEVICE_FAILED", device: { id: "dev0", side: "source", reason: "stuck" } },
    ],
    [
      "of a device there",
      new PeerAborted({ code: "BAD_DEVICE_STATE", message: "dev1 did not", device: { id: "dev1", reason: "too old" } }),
      {
        code: "BAD_DEVICE_STATE",
        message: "at the destination, dev1 did not",
        device: { id: "dev1", side: "destination", reason: "too old" },
      },
    ],
  ])("tells of an error %s", (_, error, told) => {
    expect(begun().end("failed", NOTHING, error).error).toMatchObject(told);
  });

  it("has the warnings of what could not be closed, which come after its end", async () => {
    const report = begun(20);
    const opened = new Opened((what, doing) => report.tried(what, doing));
    const closed: string[] = [];
    opened.add("the first closed", () => Promise.reject(new Error("it is stuck")));
    opened.add("the second closed", () => new Promise(() => {}));
    opened.add("the third closed", async () => void closed.push("third"));
    const ended = report.end("completed", NOTHING);
    await opened[Symbol.asyncDispose]();
    expect(closed).toEqual(["third"]);
    expect(ended.warnings).toEqual([
      "the first closed: it is stuck",
      expect.stringMatching(/^the second closed: .* did not come within 20 ms/),
    ]);
  });
});
