import { expect, it } from "vitest";
import { fakeBenchmark, fakeDevice } from "../recommend/fake-benchmark.test.helper.js";
import { benchmarkWarnings } from "./warnings.js";

it("a benchmark of steady figures has no warning", () => {
  const steady = fakeDevice("vf0", [
    { tracker: "iommu", readMs: [1, 1.01, 1.02], dma: { ratio: 0.97, low: 0.96, high: 0.98 } },
  ]);
  expect(benchmarkWarnings(fakeBenchmark([steady]))).toEqual([]);
});

it.each([
  ["reads that vary", { readMs: [1, 5, 20] }, /^reads of vf0 on iommu took so different times .*measure again/],
  [
    "a loss that may be any",
    { dma: { ratio: 0.8, low: 0.5, high: 1.2 } },
    /DMA of vf0 on iommu is too wide a range to decide/,
  ],
  ["a tracker that was refused", { problem: "no memory" }, /^vf0 on iommu: no memory$/],
])("%s are warned of", (_, part, expected) => {
  const warnings = benchmarkWarnings(fakeBenchmark([fakeDevice("vf0", [{ tracker: "iommu", ...part }])]));
  expect(warnings).toEqual([expect.stringMatching(expected)]);
});

it("reads of microseconds may vary", () => {
  const quick = fakeDevice("vf0", [{ tracker: "iommu", readMs: [0.01, 0.05, 0.1] }]);
  expect(benchmarkWarnings(fakeBenchmark([quick]))).toEqual([]);
});

it("processor time that others had, and devices that were left out, are told of", () => {
  const benchmark = fakeBenchmark([], { leftOut: [{ id: "old0", why: "it is in use" }] });
  const machine = { ...benchmark.machine, stealShare: 0.2 };
  expect(benchmarkWarnings({ ...benchmark, machine })).toEqual([
    "old0 was not measured: it is in use",
    "the hypervisor gave 20 % of the processor to others meanwhile",
  ]);
});
