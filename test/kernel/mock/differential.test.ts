import { afterAll, expect, it } from "vitest";
import { DmaMemory, HUGE_2M } from "../../../src/memory/dma-memory.js";
import { EmulatedMock } from "../../differential/emulated-rig.js";
import { DEFAULT_KIND, HUGE_KIND, MEMORY_BYTES } from "../../differential/mock-kind.js";
import { MUTANTS } from "../../differential/mutants.js";
import { describeDifference, type MakeSides, runSeed } from "../../differential/sequence.js";
import { shrink } from "../../differential/shrink.js";
import { type Rig, Side } from "../../differential/side.js";
import { KernelRig } from "../mock-rig.js";

/*
 * Random sequences of operations on the emulated iommufd and on the kernel's, whose answers must be the same. What differs
 * by design is in docs/fidelity.md, under "How this is checked".
 *
 *   DIRTMAP_REPLAY   seeds to run again, separated by commas, instead of new ones
 *   DIRTMAP_NIGHTLY  1: 10,000 sequences instead of 300
 *   DIRTMAP_SEQUENCES  another number of sequences
 */

const nightly = process.env.DIRTMAP_NIGHTLY === "1";
const sequences = Number(process.env.DIRTMAP_SEQUENCES ?? (nightly ? 10_000 : 300));
const replay = (process.env.DIRTMAP_REPLAY ?? "").split(",").filter((seed) => seed !== "");

/** A run that takes longer fails: fewer sequences than were asked for prove less than the result would say. */
const LIMIT_MS = nightly ? 6 * 3600_000 : 420_000;

/** Differences that are shrunk and shown before the run ends. */
const SHOWN = 3;

// Physically contiguous, like an arena of the emulated host: so the choice of leaves can be compared, too.
const memory = DmaMemory.allocate(MEMORY_BYTES, { kind: "hugetlb", pageBytes: HUGE_2M });
const mocks = new Map([DEFAULT_KIND, HUGE_KIND].map((kind) => [kind, new EmulatedMock(kind)]));

afterAll(async () => {
  for (const mock of mocks.values()) await mock[Symbol.asyncDispose]();
  memory[Symbol.dispose]();
});

// Half of the answers are refusals, and most of what a refusal costs is its stack.
Error.stackTraceLimit = 0;

/** @param mutate what is made of the emulated host */
function sides(mutate: (rig: Rig) => Rig): MakeSides {
  return async (kind) => {
    const mock = mocks.get(kind);
    if (mock === undefined) throw new Error(`no mock has ${kind.name} page tables`);
    return [new Side(mutate(mock.open())), new Side(new KernelRig(kind, memory))];
  };
}

function kindOf(seed: number) {
  return seed % 2 === 0 ? DEFAULT_KIND : HUGE_KIND;
}

it(
  `the emulated iommufd and Linux's give the same answers to ${sequences} random sequences`,
  async () => {
    const make = sides((rig) => rig);
    const start = performance.now();
    const first = Date.now() >>> 0;
    const seeds =
      replay.length > 0 ? replay.map(Number) : Array.from({ length: sequences }, (_, i) => (first + i) >>> 0);
    expect(seeds.length).toBeGreaterThan(0);
    expect(seeds.every(Number.isSafeInteger), `seeds are whole numbers: ${replay}`).toBe(true);
    const differences: string[] = [];
    let run = 0;
    for (const seed of seeds) {
      if (performance.now() - start > LIMIT_MS || differences.length >= SHOWN) break;
      const found = await runSeed(make, kindOf(seed), seed);
      run++;
      if (found === null) continue;
      differences.push(`seed ${seed} (DIRTMAP_REPLAY=${seed}), ${describeDifference(await shrink(make, found))}`);
    }
    const seconds = (performance.now() - start) / 1000;
    console.log(
      `${run} of ${seeds.length} sequences in ${seconds.toFixed(1)} s (${(run / seconds).toFixed(1)} per second), ` +
        `seeds ${seeds[0]} to ${seeds.at(-1)}`,
    );
    expect(differences.join("\n\n")).toBe("");
    expect(run, `only ${run} sequences within ${LIMIT_MS / 1000} s`).toBe(seeds.length);
  },
  LIMIT_MS + 120_000,
);

it.runIf(nightly).each(MUTANTS)(
  "an emulated iommufd with %s would be found",
  async (name, mutate) => {
    const make = sides(mutate);
    let seed = 1;
    while (seed <= 300 && (await runSeed(make, kindOf(seed), seed)) === null) seed++;
    console.log(`${name}: found by sequence ${seed}`);
    expect(seed).toBeLessThanOrEqual(300);
  },
  900_000,
);
