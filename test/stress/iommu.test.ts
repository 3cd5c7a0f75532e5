import { describe, expect, it } from "vitest";
import type { IommuFormatName } from "../../src/host/description.js";
import { type Mutant, runStress, runUnmapStress, type StressOptions } from "./harness.js";

/** Writes of the whole file; `npm run test:stress` sets 10^8. */
const WRITES = Number(process.env.DIRTMAP_STRESS_WRITES ?? 1_000_000);
const SEED = (Date.now() & 0x7fffffff) | 1;
/** How long one of the runs may take: generous, since machines are shared. */
const DEADLINE_MS = 30_000 + WRITES / 20;

const layouts: [string, Pick<StressOptions, "format" | "hugePages" | "writers">, number][] = [
  ["amd-v1, 4 KiB pages", { format: "amd-v1", hugePages: false, writers: 1 }, 0.2],
  ["amd-v1, contiguous large pages, two devices", { format: "amd-v1", hugePages: true, writers: 2 }, 0.1],
  ["vtd-ss, 4 KiB pages", { format: "vtd-ss", hugePages: false, writers: 1 }, 0.2],
  ["arm-s1, 4 KiB pages, two devices", { format: "arm-s1", hugePages: false, writers: 2 }, 0.1],
  ["arm-s1, 4 KiB pages", { format: "arm-s1", hugePages: false, writers: 1 }, 0.2],
];

describe("under stress, no write is missing in the copy", () => {
  it.each(layouts)(
    "system IOMMU: %s",
    async (_name, layout, share) => {
      const result = await runStress({
        tracker: "iommu",
        ...layout,
        writes: WRITES * share,
        seed: SEED,
        deadlineMs: DEADLINE_MS,
      });
      expect(result, `seed ${SEED}`).toMatchObject({ lost: 0, faults: 0 });
      expect(result.writes).toBeGreaterThanOrEqual(WRITES * share);
    },
    DEADLINE_MS,
  );

  it(
    "system IOMMU, read on the reader's thread",
    async () => {
      const result = await runStress({
        tracker: "iommu",
        format: "amd-v1",
        hugePages: false,
        writers: 1,
        reading: "thread",
        writes: WRITES * 0.02,
        seed: SEED,
        deadlineMs: DEADLINE_MS,
      });
      expect(result, `seed ${SEED}`).toMatchObject({ lost: 0, faults: 0 });
    },
    DEADLINE_MS,
  );

  it.each([
    ["amd-v1", true],
    ["vtd-ss", false],
  ] as const)(
    "an unmap takes the dirty bits along: %s",
    async (format, hugePages) => {
      const options = { format, hugePages, writes: WRITES * 0.05, seed: SEED, deadlineMs: DEADLINE_MS };
      expect((await runUnmapStress(options)).lost, `seed ${SEED}`).toBe(0);
    },
    DEADLINE_MS,
  );

  it.each(["device-log", "cpu-log"] as const)(
    "%s",
    async (tracker) => {
      const writers = tracker === "cpu-log" ? 2 : 1;
      const result = await runStress({
        tracker,
        format: "vtd-ss",
        hugePages: true,
        writers,
        writes: WRITES * 0.1,
        seed: SEED,
        deadlineMs: DEADLINE_MS,
      });
      expect(result, `seed ${SEED}`).toMatchObject({ lost: 0, faults: 0 });
      expect(result.writes).toBeGreaterThanOrEqual(WRITES * 0.1);
    },
    DEADLINE_MS,
  );
});

const MUTANTS = ["no-flush", "no-drain", "copy-before-clear"] as const;
const FORMATS = ["amd-v1", "vtd-ss", "arm-s1"] as const;
/** Each mutant with one format; in the long run, with each. */
const iommuMutants = MUTANTS.flatMap((mutant, index) =>
  (WRITES > 10_000_000 ? FORMATS : [FORMATS[index]]).map((format): [Mutant, IommuFormatName] => [mutant, format]),
);

describe("the stress notices", () => {
  const mutant = {
    hugePages: false,
    writers: 1,
    writes: 5_000_000,
    seed: SEED,
    deadlineMs: 60_000,
  };

  it.each(iommuMutants)(
    "%s (%s)",
    async (name, format) => {
      const result = await runStress({ ...mutant, tracker: "iommu", format, mutant: name });
      expect(result.lost, `seed ${SEED}`).toBeGreaterThan(0);
    },
    70_000,
  );

  it.each([
    ["mark-before-store", "device-log"],
    ["no-flush", "device-log"],
    ["mark-before-store", "cpu-log"],
  ] as const)(
    "%s (%s)",
    async (name, tracker) => {
      const result = await runStress({ ...mutant, tracker, format: "vtd-ss", mutant: name });
      expect(result.lost, `seed ${SEED}`).toBeGreaterThan(0);
    },
    70_000,
  );

  it.each(["no-flush", "no-drain"] as const)(
    "an unmap with %s",
    async (name) => {
      const result = await runUnmapStress({ ...mutant, format: "vtd-ss", mutant: name });
      expect(result.lost, `seed ${SEED}`).toBeGreaterThan(0);
    },
    70_000,
  );
});
