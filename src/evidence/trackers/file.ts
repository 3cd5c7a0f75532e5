import { z } from "zod";
import { UsageError } from "../../errors.js";
import { readJson, writeJson } from "../json-file.js";
import { BENCHMARK_VERSION, type TrackerBenchmark, trackerBenchmarkSchema } from "./result.js";

/*
 * A benchmark of trackers as a file: JSON, checked field by field wherever it comes from, since a recommendation is made from
 * it and a migration follows the recommendation.
 */

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
  const parsed = trackerBenchmarkSchema.safeParse(value);
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

/** Reads a benchmark's file. @throws UsageError `NO_BENCHMARK` if it can't be read, and those of {@link checkBenchmark} */
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
