import { describe, expect, it } from "vitest";
import type { OwnerPrediction, Prediction } from "../../evidence/predict/predict.js";
import { predictText } from "./predict-text.js";

const OWNER: OwnerPrediction = {
  owner: "domain:nic0+disk0",
  tracker: "iommu",
  devices: ["nic0", "disk0"],
  everything: false,
  bytesPerSecond: 20 * 2 ** 20,
  workingSetBytes: 8 * 2 ** 20,
  growth: [],
  suspended: { converges: true, rounds: 2, downtimeMs: 30, movingMs: 900, gainMs: 12 },
  halved: { converges: true, rounds: 3, downtimeMs: 44, movingMs: 1000, gainMs: -2 },
};

const PREDICTION: Prediction = {
  converges: true,
  rounds: 2,
  downtimeMs: 42,
  movingMs: 1000,
  observedMs: 2000,
  intervals: 40,
  downtimeLimitMs: 100,
  link: { source: "loopback", firstBytesPerSecond: 2 ** 30, bytesPerSecond: 2 ** 31, betweenMs: 5, stopMs: 30 },
  inTheWay: [],
  why: null,
  neededLimitMs: null,
  simulated: [
    { round: 0, phase: "pre-copy", pages: 131_040, bytes: 2 ** 28, ms: 900, remaining: 2 ** 20 },
    { round: 1, phase: "stop-copy", pages: 256, bytes: 2 ** 20, ms: 3.4, remaining: 0 },
  ],
  owners: [
    OWNER,
    { ...OWNER, owner: "cpu", tracker: "cpu", devices: [], suspended: null },
    { ...OWNER, owner: "old0", tracker: "everything", everything: true, halved: null },
  ],
  warnings: ["nothing tracks old0"],
};

describe("a prediction's text", () => {
  it("begins with the outcome, and says where its figures come from", () => {
    expect(predictText(PREDICTION).split("\n").slice(0, 4)).toEqual([
      "converges · 2 rounds · downtime 42 ms · total 1.00 s",
      "  warning: nothing tracks old0",
      "  observed for 2.00 s in 40 intervals; downtime limit 100 ms",
      "  link: 1G/s in the first round, then 2G/s (measured on loopback); 30 ms to stop and start",
    ]);
  });

  it("has a line for each round and each owner, with what suspending or throttling it would gain", () => {
    const lines = predictText(PREDICTION).split("\n");
    expect(lines).toContain("    1  stop-copy      256  3.4 ms         0B");
    expect(lines.slice(-3).map((line) => line.split(/ {2,}/))).toEqual([
      ["nic0+disk0", "iommu", "20M/s", "8M", "30 ms (-12 ms), 2 rounds", "44 ms (+2.0 ms), 3 rounds"],
      ["cpu", "cpu", "20M/s", "8M", "-", "44 ms (+2.0 ms), 3 rounds"],
      ["old0", "everything", "-", "8M", "30 ms (-12 ms), 2 rounds", "-"],
    ]);
  });

  it("says why it does not converge, and what would work", () => {
    const text = predictText({
      ...PREDICTION,
      converges: false,
      downtimeMs: null,
      movingMs: null,
      why: { message: "old0 is in the way", remedy: "suspend it" },
      owners: [
        { ...OWNER, suspended: { converges: false, rounds: 30, downtimeMs: null, movingMs: null, gainMs: null } },
      ],
    });
    expect(text.split("\n").slice(0, 3)).toEqual([
      "does not converge",
      "  old0 is in the way",
      "  what would work: suspend it",
    ]);
    expect(text).toMatch(/does not converge {2,}44 ms/);
  });
});
