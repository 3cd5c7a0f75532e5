import { it } from "vitest";
import { Random } from "../../tools/random.js";
import { type Fault, type FaultKind, faultProxy } from "../support/fault-proxy.js";
import { forEachSeed } from "../support/seed-range.js";
import { migrateThrough } from "./pair.js";

/*
 * Faults of connections at random moments of migrations. Nightly: DIRTMAP_SEEDS=1-1000 npm run test:stress -- connections
 */

const FEW = 2 * Number(process.env.DIRTMAP_STRESS_SEEDS ?? 1);

/** About the bytes that a migration of {@link migrateThrough} sends, per direction of its connections. */
const TYPICAL_BYTES = {
  control: { "to-destination": 3000, "to-source": 10_000 },
  channel: { "to-destination": 700_000, "to-source": 400 },
};

/** A stall is noticed by silence, after 10 s: most faults are of the quick kinds. */
const KINDS: readonly (readonly [number, FaultKind])[] = [
  [40, "cut"],
  [25, "half-close"],
  [25, "delay"],
  [10, "stall"],
];

function faultOf(random: Random, channels: number): Fault {
  const connection = random.chance(50) ? 0 : random.between(1, channels);
  const direction = random.chance(50) ? "to-destination" : "to-source";
  const typical = TYPICAL_BYTES[connection === 0 ? "control" : "channel"][direction];
  return {
    kind: random.weighted(KINDS),
    connection,
    direction,
    // Now and then never reached: then all must be well.
    afterBytes: random.below(Math.ceil(typical * 1.1)),
    ms: random.between(1, 400),
  };
}

it(
  "a connection that fails at any moment never makes two machines run, nor an outcome that is wrong",
  async () => {
    await forEachSeed("connections", FEW, async (seed) => {
      const random = new Random(seed);
      const channels = random.between(1, 3);
      const verify = random.chance(25) ? "before" : "after";
      const fault = faultOf(random, channels);
      const outcome = await migrateThrough((port) => faultProxy(port, fault), { channels, verify });
      return `${fault.kind} ${outcome}`;
    });
  },
  24 * 60 * 60_000,
);
