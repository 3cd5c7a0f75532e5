import { z } from "zod";
import { UsageError } from "../../errors.js";
import { DEVICE_TRACKERS } from "../../tracking/choice.js";
import { readJson, writeJson } from "../json-file.js";
import { machineReportSchema } from "../machine.js";
import { summarySchema } from "../statistics.js";
import { BENCHMARK_VERSION, type TrackerBenchmark } from "./result.js";

/*
 * A benchmark of trackers as a file: JSON, checked field by field wherever it comes from, since a recommendation is made from
 * it and a migration follows the recommendation.
 */

const finite = z.number().min(0);
const bytes = z.int().min(0);
const name = z.string().min(1).max(256);
const text = z.string().max(4096);

const comparison = z.object({
  pairs: z.int().min(1),
  ratio: finite,
  low: finite,
  high: finite,
  p: z.number().min(0).max(1),
  decides: z.boolean(),
});

const capability = z.discriminatedUnion("available", [
  z.object({
    available: z.literal(true),
    pageSizes: z.array(z.int().min(1)).max(64),
    readableWhen: z.enum(["always", "quiesced"]),
    what: text,
  }),
  z.object({ available: z.literal(false), why: text }),
]);

const capabilities = z.object({
  id: name,
  model: name,
  mdev: z.boolean(),
  flags: z.object({ tracksInternally: z.boolean(), tracksThroughContainer: z.boolean() }),
  migration: z.object({ stopCopy: z.boolean(), p2p: z.boolean(), preCopy: z.boolean() }).nullable(),
  iommu: z
    .object({
      type: z.enum(["none", "intel-vtd", "arm-smmuv3", "amd", "other"]),
      dirtyTracking: z.boolean(),
      pageSizes: z.array(z.int().min(1)).max(64),
    })
    .nullable(),
  trackers: z.object({ iommu: capability, device: capability, pinned: capability, everything: capability }),
});

const tracker = z.object({
  tracker: z.enum(DEVICE_TRACKERS),
  granule: z.int().min(1).nullable(),
  foundGranule: z.int().min(1).nullable(),
  readableWhen: z.enum(["always", "quiesced"]),
  problem: text.nullable(),
  attach: summarySchema.nullable(),
  start: summarySchema.nullable(),
  stop: summarySchema.nullable(),
  reads: z
    .array(
      z.object({
        memoryBytes: z.int().min(4096),
        dirtyShare: z.number().min(0).max(1).nullable(),
        writtenPages: bytes.nullable(),
        reportedPages: bytes,
        ms: summarySchema,
      }),
    )
    .max(1000),
  dma: comparison.nullable(),
  precision: z.array(z.object({ ms: finite, writtenPages: bytes, reportedPages: bytes })).max(1000),
});

const schema = z.object({
  schemaVersion: z.literal(BENCHMARK_VERSION),
  kind: z.literal("trackers"),
  takenAt: z.iso.datetime(),
  quick: z.boolean(),
  machine: machineReportSchema,
  host: name,
  scenario: name.nullable(),
  measures: text,
  memoryBytes: z.int().min(4096),
  devices: z
    .array(
      z.object({
        id: name,
        model: name,
        iommuGroup: z.int().min(0).nullable(),
        capabilities,
        stateBytes: bytes.nullable(),
        writes: z
          .array(z.object({ ms: finite, pages: bytes }))
          .max(1000)
          .nullable(),
        trackers: z.array(tracker).max(256),
      }),
    )
    .max(1024),
  sharing: z
    .array(
      z.object({
        devices: z.array(name).min(2).max(1024),
        granule: z.int().min(1).nullable(),
        domains: z.object({ separate: bytes, shared: bytes }),
        separateReads: z.array(summarySchema).max(1024),
        sharedRead: summarySchema,
        read: comparison,
        dma: comparison.nullable(),
      }),
    )
    .max(1024),
  leftOut: z.array(z.object({ id: name, why: text })).max(1024),
});

/** What to run where there is no benchmark that can be used. */
const BENCH_AGAIN = "take it again: dirtmap bench trackers --output FILE";

/**
 * Checks what claims to be a benchmark of trackers.
 * @param from how messages name it: a file, or a benchmark of a store
 * @throws UsageError `BENCHMARK_TOO_NEW`, `BAD_BENCHMARK`: one line
 */
export function checkBenchmark(value: unknown, from: string): TrackerBenchmark {
  const head = z.object({ schemaVersion: z.int(), kind: z.string() }).safeParse(value);
  if (head.success && head.data.kind !== "trackers") {
    throw new UsageError(`${from} is a benchmark of ${head.data.kind.slice(0, 40)}, not of trackers`, {
      code: "BAD_BENCHMARK",
      remedy: "give one that `dirtmap bench trackers --output FILE` wrote",
    });
  }
  if (head.success && head.data.schemaVersion > BENCHMARK_VERSION) {
    throw new UsageError(
      `${from} has version ${head.data.schemaVersion}, and this Dirtmap knows ${BENCHMARK_VERSION} and older`,
      { code: "BENCHMARK_TOO_NEW", remedy: `use the Dirtmap that wrote it, or ${BENCH_AGAIN}` },
    );
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const [{ path, message }] = parsed.error.issues;
    throw damaged(from, `${path.map(String).join(".") || "it"}: ${message}`);
  }
  const uneven = parsed.data.sharing.find(({ devices, separateReads }) => devices.length !== separateReads.length);
  if (uneven !== undefined)
    throw damaged(
      from,
      `sharing: ${uneven.devices.length} devices share, and reads of ${uneven.separateReads.length} are given`,
    );
  const ids = parsed.data.devices.map(({ id }) => id);
  const twice = ids.find((id, index) => ids.indexOf(id) !== index);
  if (twice !== undefined) throw damaged(from, `the device '${twice}' is there twice`);
  return parsed.data;
}

/** Reads a benchmark's file. @throws UsageError `NO_BENCHMARK` where it can't be read, and what {@link checkBenchmark} throws */
export function readBenchmark(path: string): TrackerBenchmark {
  return checkBenchmark(readJson(path), path);
}

/** Writes a benchmark's file. @throws UsageError `CANNOT_WRITE` */
export function writeBenchmark(path: string, benchmark: TrackerBenchmark): void {
  writeJson(path, benchmark);
}

function damaged(from: string, problem: string): UsageError {
  return new UsageError(`${from} is no benchmark of trackers, or damaged: ${problem}`, {
    code: "BAD_BENCHMARK",
    remedy: BENCH_AGAIN,
  });
}
