import { expect, it } from "vitest";
import { fakeBenchmark, fakeDevice } from "../../evidence/recommend/fake-benchmark.test.helper.js";
import { recommendationOf } from "../../evidence/recommend/recommendation.js";
import { recommendationText } from "./recommendation-text.js";
import { trackersDocument } from "./trackers-document.js";
import { trackersText } from "./trackers-text.js";

const LINK = { bandwidth: 1e9, downtimeLimitMs: 100 };

/** 2G is what `--granule` takes; the largest leaf of a small guest's table is 256M. */
function benchmarkOfCoarse() {
  const device = fakeDevice("vf0", [
    { tracker: "iommu", granule: 2 ** 31 },
    { tracker: "iommu", granule: 4096 },
  ]);
  const [coarse, ...others] = device.trackers;
  return fakeBenchmark([{ ...device, trackers: [{ ...coarse, foundGranule: 2 ** 28 }, ...others] }]);
}

it("a granule has one name: what was asked for, in the benchmark and in the recommendation", () => {
  const benchmark = benchmarkOfCoarse();
  const lines = trackersText(benchmark, LINK).split("\n");
  const coarse = lines.filter((line) => /^vf0 +iommu +2G /.test(line));
  expect(coarse).toHaveLength(3);
  expect(lines.filter((line) => /^vf0 +iommu +256M/.test(line))).toEqual([]);
  expect(recommendationText(recommendationOf(benchmark, LINK, "iommu-first"))).toContain("not iommu at 2G: ");
  const figures = trackersDocument(benchmark, LINK).blocks.flatMap((block) =>
    block.kind === "figure" ? [block.svg] : [],
  );
  expect(figures.join()).toContain("iommu 2G");
});

it("the granule that a tracker turned out to have stands in a column of its own", () => {
  const lines = trackersText(benchmarkOfCoarse(), LINK).split("\n");
  const [head, coarse] = lines.slice(lines.findIndex((line) => /^device +tracker +granule +found/.test(line)));
  expect(coarse.slice(0, head.indexOf("found") + "found".length)).toMatch(/ 2G +256M$/);
});
