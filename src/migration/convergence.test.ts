import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB, PAGE_SIZE } from "../memory/address.js";
import {
  type Conditions,
  doesNotConverge,
  expectedDowntime,
  judge,
  type RoundFacts,
  throughput,
} from "./convergence.js";

const conditions: Conditions = {
  downtimeLimitMs: 50,
  maxRounds: 30,
  bandwidth: Number.POSITIVE_INFINITY,
  deviceStateBytes: 100_000,
  fixedMs: 10,
};

/** Facts of a migration of `ram` bytes at `speed` from a machine that dirties `rate` bytes per second of `footprint`. */
function simulate(
  args: { ram: number; speed: number; rate: number; footprint: number; always?: number },
  limits = conditions,
) {
  const history: RoundFacts[] = [];
  let bytes = args.ram;
  for (;;) {
    const ms = (bytes / args.speed) * 1000 + 1;
    const always = args.always ?? 0;
    const dirtied = Math.min(args.footprint, Math.ceil((args.rate * ms) / 1000 / PAGE_SIZE) * PAGE_SIZE);
    history.push({
      pages: Math.ceil(bytes / PAGE_SIZE),
      zeroPages: 0,
      ms,
      remainingBytes: Math.max(dirtied, always),
      alwaysDirtyBytes: always,
      owners: [
        { owner: "nic0", everything: false, bytes: dirtied },
        ...(always > 0 ? [{ owner: "blk0", everything: true, bytes: always }] : []),
      ],
    });
    const verdict = judge(history, limits);
    if (verdict.kind !== "continue") return { verdict, rounds: history.length, history };
    bytes = Math.max(PAGE_SIZE, dirtied - always);
  }
}

describe("convergence", () => {
  it("switches over exactly when the expected downtime is within the limit", () => {
    const facts = fc.record({
      pages: fc.integer({ min: 1, max: 1 << 20 }),
      zeroShare: fc.double({ min: 0, max: 1, noNaN: true }),
      ms: fc.double({ min: 0.01, max: 1e5, noNaN: true }),
      remainingBytes: fc.integer({ min: 0, max: 2 ** 40 }),
    });
    fc.assert(
      fc.property(
        fc.array(facts, { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 1, max: 5000 }),
        (rounds, limit) => {
          const history = rounds.map(({ zeroShare, ...round }) => ({
            ...round,
            zeroPages: Math.floor(round.pages * zeroShare),
            alwaysDirtyBytes: 0,
            owners: [{ owner: "nic0", everything: false, bytes: round.remainingBytes }],
          }));
          const limits = { ...conditions, downtimeLimitMs: limit };
          const last = history[history.length - 1];
          const expected = expectedDowntime(last.remainingBytes, throughput(history, limits.bandwidth), limits);
          const verdict = judge(history, limits);
          expect(verdict.expectedDowntimeMs).toBe(expected);
          expect(verdict.kind === "switch-over").toBe(expected <= limit);
          if (history.length >= limits.maxRounds) expect(verdict.kind).not.toBe("continue");
        },
      ),
    );
  });

  it("ends within its rounds for every workload, and switches over where the dirty rate is well below the speed", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 64, max: 65536 }),
        fc.double({ min: 1e8, max: 4e9, noNaN: true }),
        fc.double({ min: 0, max: 2, noNaN: true }),
        (ramMiB, speed, ratio) => {
          const { verdict, rounds } = simulate({
            ram: ramMiB * MiB,
            speed,
            rate: speed * ratio,
            footprint: ramMiB * MiB,
          });
          expect(rounds).toBeLessThanOrEqual(conditions.maxRounds);
          if (ratio < 0.5) expect(verdict.kind).toBe("switch-over");
          if (ratio > 1.2 && (ramMiB * MiB) / speed > 0.1) expect(verdict.kind).toBe("does-not-converge");
        },
      ),
    );
  });

  it("gives the untracked device as the reason as soon as one round has shown the speed", () => {
    const { verdict, rounds } = simulate({
      ram: 1024 * MiB,
      speed: 2e9,
      rate: 1e6,
      footprint: MiB,
      always: 1024 * MiB,
    });
    expect(rounds).toBe(1);
    if (verdict.kind !== "does-not-converge") throw new Error(verdict.kind);
    expect(verdict.why).toBe("always-dirty");
    expect(verdict.owners).toEqual([{ owner: "blk0", everything: true }]);
    const error = doesNotConverge(verdict, conditions);
    expect(error.code).toBe("DOES_NOT_CONVERGE");
    expect(error.message).toContain("blk0");
    expect(error.remedy).toContain("--untracked suspend");
    expect(error.remedy).toContain(`--downtime-limit to ${verdict.neededLimitMs}ms`);
  });

  describe("what it advises can work:", () => {
    const verdict = {
      kind: "does-not-converge",
      expectedDowntimeMs: 500,
      why: "always-dirty",
      neededLimitMs: 600,
      capped: false,
      owners: [{ owner: "blk0", everything: true }],
    } as const;
    const remedy = (
      given: Partial<typeof verdict> | object,
      known?: Parameters<typeof doesNotConverge>[2],
      limits = {},
    ) => doesNotConverge({ ...verdict, ...given }, { ...conditions, ...limits }, known).remedy;
    const ways = (stops: boolean, ...trackers: string[]) => ({ ways: [{ device: "blk0", stops, trackers }] });

    it("a tracker only for a device that has one, a suspension only for one that supports STOP", () => {
      const raise = "raise --downtime-limit to 600ms";
      const suspend = "suspend blk0 for the migration (--untracked suspend)";
      expect(remedy({}, ways(true))).toBe(`${suspend} or ${raise}`);
      expect(remedy({}, ways(false))).toBe(raise);
      expect(remedy({}, ways(false, "device"))).toBe(`give blk0 a tracker (--tracker blk0=device) or ${raise}`);
      expect(remedy({})).toMatch(/if it supports STOP.*if it has one/);
    });

    it("neither where the design follows no device's tracker", () => {
      expect(remedy({}, { ...ways(true, "device"), design: "type1" })).toBe(
        "use another design than type1 (--design split) or raise --downtime-limit to 600ms",
      );
    });

    it("more channels only below the bandwidth that is allowed, and more bandwidth only at it", () => {
      const tracked = { why: "no-progress", owners: [{ owner: "nic0", everything: false }] };
      expect(remedy(tracked)).toMatch(/^lower their load, use more --channels or raise/);
      expect(remedy({ ...tracked, capped: true })).toMatch(/^lower their load, raise --bandwidth or raise/);
      const slow = { ram: 1024 * MiB, speed: 1e8, rate: 2e8, footprint: 512 * MiB };
      expect(simulate(slow, { ...conditions, bandwidth: 1e8 }).verdict).toMatchObject({ capped: true });
      expect(simulate(slow).verdict).toMatchObject({ capped: false });
    });

    it("no faster way where even nothing takes too long, and no limit that can't be asked for", () => {
      expect(remedy({ why: "no-progress", owners: [] }, {}, { fixedMs: 100 })).toBe("raise --downtime-limit to 600ms");
      expect(remedy({ neededLimitMs: 4e6 }, ways(false))).toBeUndefined();
    });
  });

  it("advises a limit with which the same workload does converge", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 256, max: 4096 }),
        fc.double({ min: 0, max: 3, noNaN: true }),
        fc.boolean(),
        (ramMiB, ratio, untracked) => {
          const workload = {
            ram: ramMiB * MiB,
            speed: 1e9,
            rate: 1e9 * ratio,
            footprint: (ramMiB * MiB) / 2,
            always: untracked ? ramMiB * MiB : 0,
          };
          const first = simulate(workload).verdict;
          if (first.kind !== "does-not-converge") return;
          const second = simulate(workload, { ...conditions, downtimeLimitMs: first.neededLimitMs }).verdict;
          expect(second.kind).toBe("switch-over");
        },
      ),
    );
  });

  it("does not take a mostly empty memory for a slow connection", () => {
    const round: RoundFacts = {
      pages: 262144,
      zeroPages: 262144 - 4096,
      ms: 150,
      remainingBytes: 0,
      alwaysDirtyBytes: 0,
      owners: [],
    };
    expect(throughput([round], Number.POSITIVE_INFINITY)).toBeGreaterThan((16 * MiB) / 0.15);
    expect(throughput([{ ...round, pages: 100, zeroPages: 100 }], 1e6)).toBe(1e6);
  });
});
