import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import type { TraceInterval } from "../trace/interval.js";
import { ASSUMED_LINK, costsFromReports, type LinkEstimate, linkFromReports } from "./link.js";
import {
  type Observation,
  type ObservedOwner,
  type PredictedConditions,
  predict,
  predictedOutcome,
} from "./predict.js";

/*
 * Populations of writers on a clock that is counted, and a migration of them that is carried out page by page: what the
 * prediction, which sees only intervals, is compared with.
 */

const MEMORY = 64 * MiB;
const RAM_PAGES = (64 * MiB - 128 * 1024) / PAGE_SIZE;
const LINK: LinkEstimate = {
  source: "run",
  firstBytesPerSecond: 200e6,
  bytesPerSecond: 200e6,
  betweenMs: 4,
  stopMs: 25,
};
const INTERVAL_MS = 50;

/** Goes round its pages, or hits them at random. */
interface Writer {
  readonly id: string;
  readonly first: number;
  readonly pages: number;
  readonly perMs: number;
  readonly random: boolean;
}

/** The page of a writer's nth write. */
function pageOf({ first, pages, random }: Writer, n: number): number {
  if (!random) return first + (n % pages);
  let x = Math.imul(n + 1, 0x9e3779b1) >>> 0;
  x ^= x >>> 15;
  x = Math.imul(x, 0x85ebca6b) >>> 0;
  x ^= x >>> 13;
  return first + ((x >>> 0) % pages);
}

function writtenIn(writer: Writer, fromMs: number, toMs: number): Set<number> {
  const pages = new Set<number>();
  for (let n = Math.floor(fromMs * writer.perMs); n < Math.floor(toMs * writer.perMs); n++)
    pages.add(pageOf(writer, n));
  return pages;
}

function runsOf(pages: ReadonlySet<number>) {
  return Uint32Array.from([...pages].sort((a, b) => a - b).flatMap((page) => [page, 1]));
}

const ownerOf = ({ id }: Writer): ObservedOwner => ({
  owner: id,
  tracker: id === "cpu" ? "cpu" : "iommu",
  devices: id === "cpu" ? [] : [{ id, model: "nic" }],
});

function observe(writers: readonly Writer[], intervals = 30): Observation {
  return {
    memoryBytes: MEMORY,
    platform: "pc",
    zeroShare: 0,
    deviceStateBytes: 0,
    owners: writers.map(ownerOf),
    unread: [],
    intervals: Array.from({ length: intervals }, (_, i): TraceInterval => {
      const [from, to] = [i * INTERVAL_MS, (i + 1) * INTERVAL_MS];
      return {
        elapsedMs: INTERVAL_MS,
        owners: new Map(writers.map((writer) => [writer.id, runsOf(writtenIn(writer, from, to))])),
      };
    }),
  };
}

/** The migration itself, page by page: rounds and downtime. It switches over as the limit allows. */
function migrated(writers: readonly Writer[], link: LinkEstimate, limitMs: number) {
  const transferMs = (pages: number) => ((pages * PAGE_SIZE) / link.bytesPerSecond) * 1000;
  const union = (from: number, to: number) => {
    const all = new Set<number>();
    for (const writer of writers) for (const page of writtenIn(writer, from, to)) all.add(page);
    return all.size;
  };
  let clock = 1_000_000;
  let pages = RAM_PAGES;
  for (let rounds = 1; rounds <= 30; rounds++) {
    const from = clock;
    clock += transferMs(pages) + link.betweenMs;
    pages = union(from, clock);
    if (transferMs(pages) + 31 <= limitMs) {
      return { rounds: rounds + 1, downtimeMs: transferMs(union(from, clock + 10)) + link.stopMs };
    }
  }
  return null;
}

const wanted = (downtimeLimitMs: number): PredictedConditions => ({ downtimeLimitMs });
const writer = (id: string, first: number, pages: number, perMs: number, random = false): Writer => ({
  id,
  first,
  pages,
  perMs,
  random,
});

describe("a prediction", () => {
  it("agrees with the migration, page by page, in downtime within 20 % and in rounds within one", () => {
    const writers = fc
      .array(
        fc.record({
          pages: fc.integer({ min: 64, max: 1500 }),
          perMs: fc.double({ min: 0.5, max: 12, noNaN: true }),
          random: fc.boolean(),
        }),
        { minLength: 1, maxLength: 4 },
      )
      .map((all) => all.map((one, i) => ({ id: i === 0 ? "cpu" : `dev${i}`, first: 1000 + i * 2000, ...one })));
    fc.assert(
      fc.property(writers, (all) => {
        const actual = migrated(all, LINK, 200);
        const foreseen = predict(observe(all), LINK, wanted(200));
        if (actual === null) throw new Error("these can't fill a link of 200 MB/s");
        expect(foreseen.converges).toBe(true);
        expect(Math.abs(foreseen.rounds - actual.rounds)).toBeLessThanOrEqual(1);
        fc.pre(foreseen.rounds === actual.rounds);
        expect(Math.abs((foreseen.downtimeMs ?? 0) / actual.downtimeMs - 1)).toBeLessThan(0.2);
      }),
      { numRuns: 25 },
    );
  });

  it("of an idle machine is two rounds, and the fixed costs are its downtime", () => {
    const foreseen = predict(observe([writer("nic0", 1000, 64, 0)]), LINK, wanted(50));
    expect(foreseen).toMatchObject({ converges: true, rounds: 2, downtimeMs: 25, inTheWay: [], why: null });
  });

  it("takes a device without a tracker for all that it may write, and says that suspending it would help", () => {
    const seen = observe([writer("vf0", 1000, 200, 2)]);
    const everything = Uint32Array.of(256, RAM_PAGES - 300);
    const foreseen = predict(
      {
        ...seen,
        owners: [...seen.owners, { owner: "old0", tracker: "everything", devices: [{ id: "old0", model: "nic" }] }],
        intervals: seen.intervals.map(({ elapsedMs, owners }) => ({
          elapsedMs,
          owners: new Map([...owners, ["old0", everything]]),
        })),
      },
      LINK,
      wanted(100),
    );
    expect(foreseen).toMatchObject({ converges: false, downtimeMs: null, inTheWay: ["old0"] });
    expect(foreseen.why?.remedy).toContain("suspend old0");
    expect(foreseen.neededLimitMs).toBeGreaterThan(300);
    const [vf0, old0] = foreseen.owners;
    expect(old0).toMatchObject({ everything: true, halved: null, suspended: { converges: true } });
    expect(vf0.suspended).toMatchObject({ converges: false, gainMs: null });
  });

  it("names the writer that is too fast, and what it would gain to have it write half as fast", () => {
    const seen = observe([writer("vf0", 1000, 6000, 60), writer("nic0", 9000, 200, 1)]);
    const foreseen = predict(seen, LINK, wanted(100));
    expect(foreseen).toMatchObject({ converges: false, inTheWay: ["vf0"] });
    const [vf0, nic0] = foreseen.owners;
    expect(vf0.suspended?.converges).toBe(true);
    expect(vf0.halved?.converges).toBe(true);
    expect(nic0.suspended?.converges).toBe(false);
    // 60 pages a millisecond.
    expect(vf0.bytesPerSecond).toBeCloseTo(60_000 * PAGE_SIZE, -6);
    expect(vf0.workingSetBytes).toBe(6000 * PAGE_SIZE);
  });

  it("gains nothing from what another writes too", () => {
    const twice = [writer("a", 1000, 500, 4), writer("b", 1000, 500, 4)];
    const [a] = predict(observe(twice), LINK, wanted(100)).owners;
    expect(Math.abs(a.suspended?.gainMs ?? 99)).toBeLessThan(0.01);
  });

  it("never foresees a longer downtime for a faster link, or a shorter one for more devices", () => {
    const one = fc.record({
      pages: fc.integer({ min: 64, max: 1500 }),
      perMs: fc.double({ min: 0, max: 5, noNaN: true }),
    });
    fc.assert(
      fc.property(
        fc.array(one, { minLength: 1, maxLength: 3 }),
        fc.double({ min: 1.1, max: 8, noNaN: true }),
        (all, more) => {
          const writers = all.map(({ pages, perMs }, i) => writer(`d${i}`, 1000 + i * 2000, pages, perMs));
          // A limit that lets each of them switch over after the first round: only the last window is compared.
          const slow = predict(observe(writers), LINK, wanted(60_000));
          const faster = {
            ...LINK,
            firstBytesPerSecond: LINK.firstBytesPerSecond * more,
            bytesPerSecond: LINK.bytesPerSecond * more,
          };
          const fast = predict(observe(writers), faster, wanted(60_000));
          const fewer = predict(observe(writers.slice(1)), LINK, wanted(60_000));
          expect(fast.downtimeMs ?? 0).toBeLessThanOrEqual((slow.downtimeMs ?? 0) + 1e-6);
          expect(fewer.downtimeMs ?? 0).toBeLessThanOrEqual((slow.downtimeMs ?? 0) + 1e-6);
        },
      ),
      { numRuns: 40 },
    );
  });

  it("reckons with the devices' states, with zero pages, and with a limit on the bandwidth", () => {
    const seen = observe([writer("vf0", 1000, 200, 2)]);
    const plain = predict(seen, LINK, wanted(200));
    const heavy = predict({ ...seen, deviceStateBytes: 20e6 }, LINK, wanted(200));
    expect((heavy.downtimeMs ?? 0) - (plain.downtimeMs ?? 0)).toBeCloseTo(100, 3);
    const zero = predict({ ...seen, zeroShare: 0.75 }, LINK, wanted(200));
    expect(zero.movingMs ?? 0).toBeLessThan((plain.movingMs ?? 0) * 0.5);
    const half = predict(seen, LINK, { ...wanted(200), bandwidth: 100e6 });
    expect(half.link.bytesPerSecond).toBe(100e6);
    expect(half.movingMs ?? 0).toBeGreaterThan((plain.movingMs ?? 0) * 1.5);
  });

  it("says what it can't know", () => {
    const seen = { ...observe([]), zeroShare: null, deviceStateBytes: null, unread: ["vf0"], intervals: [] };
    const { warnings, converges } = predict(seen, ASSUMED_LINK, wanted(100));
    expect(converges).toBe(true);
    expect(warnings).toEqual(
      ["log of vf0", "nothing was observed", "memory is zero", "states take"].map((part) =>
        expect.stringContaining(part),
      ),
    );
  });

  it("is kept in a report as its outcome", () => {
    const foreseen = predict(observe([writer("vf0", 1000, 200, 2)]), LINK, wanted(100));
    expect(predictedOutcome(foreseen)).toEqual({
      converges: true,
      rounds: foreseen.rounds,
      downtimeMs: foreseen.downtimeMs,
      movingMs: foreseen.movingMs,
      inTheWay: [],
      observedMs: 1500,
    });
  });
});

describe("what earlier migrations tell of a link", () => {
  const round = (n: number, pages: number, ms: number, phase: "pre-copy" | "stop-copy" = "pre-copy") => ({
    round: n,
    phase,
    pages,
    zeroPages: 0,
    bytes: pages * PAGE_SIZE,
    ms,
    remaining: 0,
    byDevice: {},
  });
  const report = (downtimeMs: number) => ({
    result: "completed" as const,
    downtimeMs,
    phases: [{ phase: "pre-copy", ms: 160 }],
    rounds: [round(0, 10_000, 100), round(1, 5000, 40), round(2, 10, 3, "stop-copy")],
  });

  it("are its speeds, the time between rounds, and what a stop takes besides its pages", () => {
    const link = linkFromReports([report(43), report(33), report(38)]);
    expect(link.source).toBe("run");
    expect(link.firstBytesPerSecond).toBeCloseTo(409.6e6, -3);
    expect(link.bytesPerSecond).toBeCloseTo(512e6, -3);
    expect(link.betweenMs).toBeCloseTo(10);
    // The last round's three milliseconds are not for its ten pages: at this speed those take 0.08.
    expect(link.stopMs).toBeCloseTo(38 - 0.08);
  });

  it("are what a stop takes at another link's speed, but for one that was held back", () => {
    const link = { ...ASSUMED_LINK, firstBytesPerSecond: 1e9, bytesPerSecond: 1e9 };
    const { bytesPerSecond, stopMs, betweenMs } = costsFromReports([report(38)], link);
    expect(bytesPerSecond).toBe(1e9);
    // Its fastest round shows 512 MB/s.
    expect(stopMs).toBeCloseTo(38 - 0.08);
    expect(betweenMs).toBeCloseTo((160 - (10_000 * 4096) / 512e3 - 40) / 2);
  });

  it("is nothing where none completed", () => {
    expect(linkFromReports([])).toBe(ASSUMED_LINK);
    expect(linkFromReports([{ ...report(40), result: "failed" }])).toBe(ASSUMED_LINK);
  });
});
