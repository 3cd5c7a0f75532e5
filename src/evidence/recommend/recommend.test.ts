import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB } from "../../memory/address.js";
import { comparePairs, summarize } from "../statistics.js";
import { checkBenchmark } from "../trackers/file.js";
import { type FakeTracker, fakeBenchmark, fakeDevice, fakeTracker, MEMORY } from "./fake-benchmark.test.helper.js";
import { marginText } from "./reason.js";
import { recommend } from "./recommend.js";
import type { RecommendedDevice } from "./result.js";

const LINK = { bandwidth: 1e9, downtimeLimitMs: 100 };

/** What is recommended for one device of these trackers. */
function of(trackers: readonly FakeTracker[], link = LINK): RecommendedDevice {
  return recommend(fakeBenchmark([fakeDevice("vf0", trackers)]), link)[0];
}

const IOMMU = { tracker: "iommu" } as const;
const LOG = { tracker: "device" } as const;

describe("one criterion after the other decides", () => {
  it.each<[string, FakeTracker[], { tracker: string; by: string }]>([
    ["whether the limit is met", [{ ...IOMMU, names: 500 }, LOG], { tracker: "device", by: "converges" }],
    ["the downtime", [{ ...IOMMU, readMs: [20, 20, 20] }, LOG], { tracker: "device", by: "downtime" }],
    [
      "the device's writes",
      [
        { ...IOMMU, dma: { ratio: 0.5, low: 0.4, high: 0.6 } },
        { ...LOG, dma: { ratio: 0.98, low: 0.9, high: 1.02 } },
      ],
      { tracker: "device", by: "dma" },
    ],
    [
      "what a round pays",
      [
        { ...IOMMU, readMs: [2, 2.1, 2.2] },
        { ...LOG, readMs: [1, 1.1, 1.2] },
      ],
      { tracker: "device", by: "round" },
    ],
    ["the order, where all is equal", [LOG, IOMMU], { tracker: "iommu", by: "order" }],
  ])("%s", (_, trackers, { tracker, by }) => {
    const { tracker: best, margin } = of(trackers);
    expect({ tracker: best, by: margin?.by }).toEqual({ tracker, by });
    // An order that turns round turns the tie round, and nothing else.
    const [turned] = recommend(fakeBenchmark([fakeDevice("vf0", trackers)]), LINK, "device-first");
    expect(turned.tracker).toBe("device");
  });

  it("the length of the migration, where both are stopped in time", () => {
    const named = { ...IOMMU, names: 3 };
    const { tracker, margin } = of([named, LOG], { bandwidth: 200e6, downtimeLimitMs: 20_000 });
    expect({ tracker, by: margin?.by }).toEqual({ tracker: "device", by: "total" });
  });

  it("with the figures of both, and which way they lie", () => {
    const { margin, reason, figures } = of([{ ...IOMMU, readMs: [2, 2, 2] }, LOG]);
    expect(margin).toMatchObject({
      over: { tracker: "iommu", granule: 4096 },
      by: "round",
      figure: expect.closeTo(0.51),
      overFigure: expect.closeTo(2.03),
    });
    expect(reason).toBe(
      "'device' at 4K, since 'iommu' at 4K costs each round more, in reading and in sending what nobody wrote: at least 2.03 ms against 0.51 ms",
    );
    expect(figures).toMatchObject({ converges: true, precision: 1, dmaLoss: 0 });
  });
});

describe("noise", () => {
  it("of reads leaves it to the order", () => {
    const { tracker, margin, reason } = of([
      { ...IOMMU, readMs: [0.4, 1, 3] },
      { ...LOG, readMs: [0.5, 0.8, 1.2] },
    ]);
    expect({ tracker, by: margin?.by }).toEqual({ tracker: "iommu", by: "order" });
    expect(reason).toMatch(/'device' at 4K is as good as far as was measured, and the policy's order decides$/);
  });

  it("that only adds does not make a good tracker look bad", () => {
    const disturbed = { ...IOMMU, readMs: [0.4, 10, 14] };
    expect(of([disturbed, { ...LOG, readMs: [0.4, 0.5, 0.6] }])).toMatchObject({
      tracker: "iommu",
      margin: { by: "order" },
    });
  });

  it("of a device's writes is no harm, however bad the median", () => {
    const { tracker } = of([{ ...IOMMU, dma: { ratio: 0.6, low: 0.2, high: 1.3 } }, LOG]);
    expect(tracker).toBe("iommu");
  });

  it("does not make a tracker better that slows its device down, and so finds less dirty", () => {
    const harmed = fakeDevice("vf0", [{ ...IOMMU, dma: { ratio: 0.1, low: 0.05, high: 0.2 } }, LOG]);
    const [harmful, good, everything] = harmed.trackers;
    // Of the same times the device wrote a tenth.
    const few = harmful.precision.map(({ ms, writtenPages, reportedPages }) => {
      return { ms, writtenPages: writtenPages / 10, reportedPages: reportedPages / 10 };
    });
    const device = { ...harmed, trackers: [{ ...harmful, precision: few }, good, everything] };
    const [{ tracker, margin }] = recommend(fakeBenchmark([device]), LINK);
    expect({ tracker, by: margin?.by }).toEqual({ tracker: "device", by: "dma" });
  });
});

describe("a tracker that was passed over", () => {
  /** A third tracker has the shortest migration of all, and loses by its harm to the device. */
  const link = { bandwidth: 200e6, downtimeLimitMs: 20_000 };
  const harmful = { ...LOG, names: 1.8, dma: { ratio: 0.5, low: 0.4, high: 0.6 } };
  const between = { ...LOG, granule: 65536, names: 2, readMs: [1.5] };
  const long = { ...IOMMU, names: 2.2 };

  it("lost to the winner itself, and not only to a third tracker that lost as well", () => {
    const { tracker, granule, alternatives } = of([harmful, between, long], link);
    expect({ tracker, granule }).toEqual({ tracker: "iommu", granule: 4096 });
    expect(alternatives.map(({ over, by }) => [over.granule, by])).toEqual([
      [65536, "round"],
      [4096, "dma"],
    ]);
  });

  it("is not told of with a figure that is better than the winner's, however disturbed the winner was", () => {
    const disturbed = { ...IOMMU, readMs: [0.1, 30, 60] };
    const quiet = { ...LOG, readMs: [20, 20, 20] };
    const third = { ...LOG, granule: 65536, readMs: [1, 1, 1] };
    const { tracker, figures, alternatives } = of([disturbed, quiet, third]);
    expect(tracker).toBe("iommu");
    const slow = alternatives.find(({ over }) => over.granule === 4096);
    expect(figures.downtimeMs).toBeGreaterThan(slow?.figures.downtimeMs ?? 0);
    expect(slow).toMatchObject({ by: "downtime", figure: figures.downtimeAtLeastMs });
    expect(slow?.overFigure).toBeGreaterThan(slow?.figure ?? Number.POSITIVE_INFINITY);
  });

  it.each([
    [245.4, 245.02, "at least 245.40 ms against 245.02 ms"],
    [0.00125, 0.001, "at least 0.0013 ms against 0.0010 ms"],
    [95, 41, "at least 95 ms against 41 ms"],
  ])("is told of in figures that differ as printed: %d and %d", (overFigure, figure, text) => {
    const over = { tracker: "device", granule: 4096 } as const;
    expect(marginText({ ...over, granule: 65536 }, { over, by: "total", figure, overFigure })).toContain(text);
  });
});

describe("granules", () => {
  it("are fine where they are equal", () => {
    const { granule, margin, reason } = of([{ ...IOMMU, granule: 2 * MiB }, IOMMU]);
    expect(granule).toBe(4096);
    expect(margin?.over).toEqual({ tracker: "iommu", granule: 2 * MiB });
    expect(reason).toMatch(/'iommu' at 2M is as good, and coarser$/);
  });

  it("that make the migration send what nobody wrote pay for it, however fast their reads are", () => {
    const coarse = { ...IOMMU, granule: 2 * MiB, names: 8, readMs: [0.1] };
    expect(of([IOMMU, coarse], { ...LINK, downtimeLimitMs: 500 }).granule).toBe(4096);
  });

  it("are fine where nobody knows what was written, however fast reads of coarse ones are", () => {
    const unknown = { names: null, dma: null };
    const [device] = [
      fakeDevice("vf0", [
        { ...IOMMU, ...unknown, readMs: [5] },
        { ...IOMMU, ...unknown, granule: 2 * MiB, readMs: [0.1] },
      ]),
    ];
    const [{ granule, reason, figures }] = recommend(fakeBenchmark([{ ...device, writes: null }]), LINK);
    expect(granule).toBe(4096);
    expect(reason).toBe("nobody knows here what the device writes; 'iommu' is the only tracker that it has");
    expect(figures).toMatchObject({ converges: null, downtimeMs: null, dmaLoss: null, precision: null });
  });
});

describe("a log that can be read only when its device is quiesced", () => {
  it("loses where all that is written in a long migration has to be sent at the end", () => {
    const { tracker, margin } = of(
      [
        { ...IOMMU, dma: { ratio: 0.9 } },
        { ...LOG, readableWhen: "quiesced" },
      ],
      {
        ...LINK,
        bandwidth: 100e6,
      },
    );
    expect(tracker).toBe("iommu");
    expect(["converges", "downtime"]).toContain(margin?.by);
  });
});

describe("no tracker", () => {
  it("is recommended where there is no other, with why", () => {
    const { tracker, granule, domain, margin, reason, figures } = of([{ ...LOG, problem: "it broke" }]);
    expect({ tracker, granule, domain, margin }).toEqual({
      tracker: "everything",
      granule: null,
      domain: null,
      margin: null,
    });
    expect(reason).toBe("no tracker of vf0 works here: 'device': it broke");
    expect(figures.converges).toBe(false);
  });

  it("is never recommended where there is another, however bad", () => {
    const bad = { ...LOG, names: 900, dma: { ratio: 0.1 }, readMs: [500] };
    expect(of([bad])).toMatchObject({ tracker: "device", figures: { converges: false } });
  });
});

describe("one HWPT for several devices", () => {
  const pair = [fakeDevice("a0", [IOMMU]), fakeDevice("b0", [IOMMU]), fakeDevice("c0", [LOG])];
  const sharing = (each: number, shared: number, dma: number | null = 1) => ({
    devices: ["a0", "b0"],
    granule: 4096,
    domains: { separate: 2, shared: 1 },
    separateReads: [summarize([each, each]), summarize([each, each])],
    sharedRead: summarize([shared, shared]),
    read: comparePairs(Array.from({ length: 8 }, () => ({ a: 2 * each, b: shared }))),
    dma: dma === null ? null : comparePairs(Array.from({ length: 8 }, () => ({ a: 1, b: dma }))),
  });
  const domains = (group: ReturnType<typeof sharing>, link = LINK) =>
    recommend(fakeBenchmark(pair, { sharing: [group] }), link).map(({ domain }) => domain);

  it("is recommended where it saves a noticeable part of the downtime limit", () => {
    expect(domains(sharing(10, 10))).toEqual(["shared", "shared", "per-device"]);
    const [{ reason }] = recommend(fakeBenchmark(pair, { sharing: [sharing(10, 10)] }), LINK);
    expect(reason).toMatch(
      /shared: one read for it and b0 takes 10.00 ms less than one for each; no device's share is/,
    );
  });

  it.each([
    ["where it saves little", sharing(1, 1)],
    ["where it saves nothing", sharing(10, 20)],
    ["where it costs the devices writes", sharing(10, 10, 0.5)],
  ])("is not %s", (_, group) => {
    expect(domains(group)).toEqual(["per-device", "per-device", "per-device"]);
  });

  it("is worth more where less downtime is allowed", () => {
    expect(domains(sharing(1, 1), { ...LINK, downtimeLimitMs: 20 })).toEqual(["shared", "shared", "per-device"]);
  });

  it("is the emulated IOMMU's for mdevs, and needs none for what they pin", () => {
    const mdevs = [
      fakeDevice("gpu0", [IOMMU], { mdev: true }),
      fakeDevice("gpu1", [{ tracker: "pinned" }], { mdev: true }),
    ];
    expect(recommend(fakeBenchmark(mdevs), LINK).map(({ domain }) => domain)).toEqual(["shared", null]);
  });
});

describe("whatever was measured", () => {
  const tracker: fc.Arbitrary<FakeTracker> = fc.record(
    {
      tracker: fc.constantFrom("iommu", "device"),
      granule: fc.constantFrom(4096, 65536, 2 * MiB),
      problem: fc.constantFrom("refused", undefined, undefined, undefined) as fc.Arbitrary<string>,
      readableWhen: fc.constantFrom("always", "always", "quiesced"),
      readMs: fc.array(fc.double({ min: 0, max: 200, noNaN: true }), { minLength: 1, maxLength: 5 }),
      dma: fc.option(
        fc
          .tuple(fc.double({ min: 0.01, max: 2, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true }))
          .map(([ratio, wide]) => ({ ratio, low: ratio * (1 - wide / 2), high: ratio * (1 + wide) })),
      ),
      names: fc.option(fc.double({ min: 1, max: 600, noNaN: true })),
    },
    { requiredKeys: ["tracker", "granule"] },
  );
  // A tracker has each granule once.
  const trackers = fc.uniqueArray(tracker, {
    maxLength: 6,
    selector: ({ tracker: kind, granule }) => `${kind} ${granule}`,
  });
  const link = fc.record({
    bandwidth: fc.double({ min: 1e6, max: 1e11, noNaN: true }),
    downtimeLimitMs: fc.double({ min: 1, max: 3.6e6, noNaN: true }),
  });

  it("a device gets one of its trackers that works, the same in whatever order they were measured", () => {
    fc.assert(
      fc.property(trackers, link, (fakes, wanted) => {
        const device = fakeDevice("vf0", fakes);
        const [best] = recommend(fakeBenchmark([device]), wanted);
        const usable = device.trackers.filter(
          ({ problem, tracker: kind }) => problem === null && kind !== "everything",
        );
        const chosen = usable.find((one) => one.tracker === best.tracker && one.granule === best.granule);
        if (usable.length === 0) expect(best.tracker).toBe("everything");
        else expect(chosen).toBeDefined();
        const turned = { ...device, trackers: device.trackers.toReversed() };
        const [again] = recommend(fakeBenchmark([turned]), wanted);
        expect({
          tracker: again.tracker,
          granule: again.granule,
          domain: again.domain,
          figures: again.figures,
        }).toEqual({
          tracker: best.tracker,
          granule: best.granule,
          domain: best.domain,
          figures: best.figures,
        });
      }),
    );
  });

  it("the best is not worse than another at what decided between them, and each of the others is told of once", () => {
    fc.assert(
      fc.property(trackers, link, (fakes, wanted) => {
        const [{ figures, tracker: kind, granule, margin, alternatives }] = recommend(
          fakeBenchmark([fakeDevice("vf0", fakes)]),
          wanted,
        );
        for (const { by, figure, overFigure, figures: other } of alternatives) {
          if (by === "order") continue;
          if (by === "converges") expect([figures.converges, other.converges]).toEqual([true, false]);
          else if (figure !== null && overFigure !== null) expect(figure).toBeLessThan(overFigure);
        }
        const names = alternatives.map(({ over }) => `${over.tracker} ${over.granule}`);
        expect(new Set([...names, `${kind} ${granule}`]).size).toBe(alternatives.length + 1);
        expect(margin?.over).toEqual(alternatives.at(0)?.over);
      }),
    );
  });

  it("devices don't influence each other's trackers", () => {
    fc.assert(
      fc.property(trackers, trackers, link, (some, others, wanted) => {
        const [a, b] = [fakeDevice("a0", some), fakeDevice("b0", others)];
        const both = recommend(fakeBenchmark([a, b]), wanted);
        expect(both).toEqual([...recommend(fakeBenchmark([a]), wanted), ...recommend(fakeBenchmark([b]), wanted)]);
      }),
    );
  });

  it("a benchmark's file gives the same recommendation as the benchmark", () => {
    fc.assert(
      fc.property(trackers, link, (fakes, wanted) => {
        const benchmark = fakeBenchmark([fakeDevice("vf0", fakes)]);
        const read = checkBenchmark(JSON.parse(JSON.stringify(benchmark)), "a file");
        expect(recommend(read, wanted)).toEqual(recommend(benchmark, wanted));
      }),
    );
  });
});

it("a tracker's figures are for memory of the machine's size", () => {
  const half = { ...fakeDevice("vf0", [IOMMU]) };
  const [figures] = half.trackers;
  const reads = figures.reads.map((read) => ({ ...read, memoryBytes: MEMORY / 2 }));
  const device = { ...half, trackers: [{ ...figures, reads }, fakeTracker({ tracker: "everything" })] };
  const [{ figures: onHalf }] = recommend(fakeBenchmark([device]), LINK);
  expect(onHalf.readMs).toBeCloseTo(2 * 0.5, 1);
});
