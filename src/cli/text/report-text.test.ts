import { describe, expect, it } from "vitest";
import type { MigrationReport } from "../../migration/report.js";
import { reportText } from "./report-text.js";

const REPORT: MigrationReport = {
  schemaVersion: 1,
  migration: "1f0c93ab",
  result: "completed",
  verified: true,
  totalMs: 1840,
  downtimeMs: 23.4,
  bytes: 300 * 2 ** 20,
  phases: [
    { phase: "connecting", ms: 80 },
    { phase: "pre-copy", ms: 1500 },
  ],
  rounds: [
    {
      round: 0,
      phase: "pre-copy",
      pages: 131072,
      zeroPages: 65000,
      bytes: 260 * 2 ** 20,
      ms: 400,
      remaining: 4 * 2 ** 20,
      byDevice: { vf0: { reported: 900, exclusive: 800, readMs: 1 } },
    },
    {
      round: 1,
      phase: "stop-copy",
      pages: 1024,
      zeroPages: 0,
      bytes: 4 * 2 ** 20,
      ms: 6,
      remaining: 0,
      byDevice: { cpu: { reported: 124, exclusive: 124, readMs: 0.5 } },
    },
  ],
  devices: [
    {
      id: "vf0",
      model: "mlx5",
      tracker: "device",
      granule: 4096,
      reason: "asked for",
      alternatives: [],
      pagesReported: 900,
      pagesExclusive: 800,
      readMs: 1.5,
      suspendedMs: 0,
    },
    {
      id: "nic0",
      model: "nic",
      tracker: "everything",
      granule: null,
      reason: "no tracker",
      alternatives: [],
      pagesReported: null,
      pagesExclusive: null,
      readMs: 0,
      suspendedMs: 0,
    },
  ],
  design: "split",
  policy: "iommu-first",
  memory: { pagesCompared: 131072, pagesDifferent: 0, firstAddresses: [], coveredBy: [] },
  destination: {
    resumeMs: 2,
    stamps: { checked: 5000, problems: [] },
    written: { vf0: 321 },
  },
  predicted: null,
  warnings: [],
};

describe("the report for people", () => {
  it("begins with the outcome, the proof, the downtime and the total", () => {
    expect(reportText(REPORT).split("\n")[0]).toBe(
      "completed · verified: no write was lost · downtime 23 ms · total 1.84 s · 300M in 2 rounds",
    );
  });

  it("has a row per round, with a column for each tracker that reported in any", () => {
    const lines = reportText(REPORT).split("\n");
    const head = lines.findIndex((line) => line.startsWith("round"));
    expect(lines.slice(head, head + 3).map((line) => line.trim().split(/ {2,}/))).toEqual([
      ["round", "phase", "pages", "zero", "sent", "time", "remaining", "vf0 dirty", "cpu dirty"],
      ["0", "pre-copy", "131 072", "65 000", "260M", "400 ms", "4M", "900", "-"],
      ["1", "stop-copy", "1 024", "0", "4M", "6.0 ms", "0B", "-", "124"],
    ]);
  });

  it("has a row per device; what nobody can know is a dash, and a column is there only where it says something", () => {
    const text = reportText(REPORT);
    expect(text).toMatch(/^vf0 +mlx5 +device +4K +900 +800 +1\.5 ms$/m);
    expect(text).toMatch(/^nic0 +nic +everything +- +- +- +0\.0 ms$/m);
    expect(text).not.toContain("suspended");
    const [, nic0] = REPORT.devices;
    const suspended = reportText({ ...REPORT, devices: [{ ...nic0, suspendedMs: 1500 }] });
    expect(suspended).toMatch(/reading +suspended$/m);
    expect(suspended).toMatch(/1\.50 s$/m);
  });

  it("says each device's reason", () => {
    expect(reportText(REPORT)).toMatch(/^vf0: asked for$/m);
  });

  it("says loudly what was lost, where, and whose tracker covered it", () => {
    const text = reportText({
      ...REPORT,
      verified: false,
      memory: { pagesCompared: 1000, pagesDifferent: 3, firstAddresses: ["0x1000", "0x2000"], coveredBy: ["vf0"] },
      destination: {
        resumeMs: 1,
        stamps: { checked: 10, problems: [{ owner: "vf0", kind: "torn", count: 2 }] },
        written: {},
      },
    });
    expect(text).toContain("NOT VERIFIED: writes were lost");
    expect(text).toContain("3 of 1 000 pages differ, at 0x1000, 0x2000 …; reported by vf0");
    expect(text).toContain("stamps: 10 checked, vf0: 2 torn");
  });

  it("puts what was foreseen beside what happened", () => {
    const predicted = { converges: true, rounds: 3, downtimeMs: 20, movingMs: 1600, inTheWay: [], observedMs: 2000 };
    expect(reportText({ ...REPORT, predicted })).toContain(
      "  foreseen after 2.00 s: downtime 20 ms (was 23 ms), 3 rounds (2), total 1.60 s (1.50 s)\n",
    );
    const never = { ...predicted, converges: false, downtimeMs: null, movingMs: null, inTheWay: ["old0", "cpu"] };
    expect(reportText({ ...REPORT, result: "failed", predicted: never })).toContain(
      "  foreseen after 2.00 s: it does not converge, because of old0, cpu\n",
    );
    expect(reportText(REPORT)).not.toContain("foreseen");
  });

  it("says what failed and what would work", () => {
    const text = reportText({
      ...REPORT,
      result: "failed",
      verified: null,
      downtimeMs: null,
      memory: null,
      destination: null,
      warnings: ["the tracker of nic0 failed in round 2"],
      error: { code: "DOES_NOT_CONVERGE", message: "nic0 is in the way", remedy: "suspend nic0" },
    });
    expect(text.split("\n").slice(0, 4)).toEqual([
      "failed · total 1.84 s · 300M in 2 rounds",
      "  nic0 is in the way",
      "  what would work: suspend nic0",
      "  warning: the tracker of nic0 failed in round 2",
    ]);
  });
});
