import { z } from "zod";
import { DEFAULTS } from "../../defaults.js";
import { UsageError } from "../../errors.js";
import type { MeasuredChoices, PolicyOrder } from "../../tracking/choice.js";
import { readJson, writeJson } from "../json-file.js";
import type { Link } from "../trackers/estimate.js";
import { checkBenchmark } from "../trackers/file.js";
import type { TrackerBenchmark } from "../trackers/result.js";
import { recommend } from "./recommend.js";
import { followedSchema, RECOMMENDATION_VERSION, type Recommendation, type RecommendedDevice } from "./result.js";

/*
 * A recommendation as a file, and as a policy.
 */

/** Makes the recommendation document of a benchmark. @param order the order of trackers that decides ties */
export function recommendationOf(benchmark: TrackerBenchmark, link: Link, order: PolicyOrder): Recommendation {
  const { takenAt, host, scenario } = benchmark;
  return {
    schemaVersion: RECOMMENDATION_VERSION,
    kind: "recommendation",
    takenAt,
    host,
    scenario,
    link,
    order,
    devices: recommend(benchmark, link, order),
  };
}

/** Returns the measured choices of a recommendation, for `Policy.measured`. @param source.from the name of its origin in messages */
export function measuredChoices(
  devices: readonly Pick<RecommendedDevice, "id" | "model" | "tracker" | "granule" | "domain" | "reason">[],
  { from, unmeasured = DEFAULTS.unmeasured }: { from: string; unmeasured?: MeasuredChoices["unmeasured"] },
): MeasuredChoices {
  return {
    from,
    unmeasured,
    devices: Object.fromEntries(
      devices.map(({ id, model, tracker, granule, domain, reason }) => [
        id,
        { model, tracker, granule, domain, reason: `measured: ${reason}` },
      ]),
    ),
  };
}

/**
 * Reads what `--policy measured:FILE` names: a recommendation, or a benchmark, of which one is made.
 * @param link for a benchmark: the migration that it is for
 * @throws UsageError `NO_BENCHMARK`, `BAD_BENCHMARK`, `BENCHMARK_TOO_NEW`: one line
 */
export function readMeasured(
  path: string,
  { link, order, unmeasured }: { link: Link; order: PolicyOrder; unmeasured: MeasuredChoices["unmeasured"] },
): MeasuredChoices {
  const value = readJson(path);
  const head = z.object({ schemaVersion: z.int(), kind: z.literal("recommendation") }).safeParse(value);
  if (!head.success) {
    const devices = recommend(checkBenchmark(value, path), link, order);
    return measuredChoices(devices, { from: path, unmeasured });
  }
  if (head.data.schemaVersion > RECOMMENDATION_VERSION) {
    throw new UsageError(
      `${path} has version ${head.data.schemaVersion}, and this Dirtmap knows ${RECOMMENDATION_VERSION} and older`,
      {
        code: "BENCHMARK_TOO_NEW",
        remedy: "use the Dirtmap that wrote it, or make it again: dirtmap recommend --output FILE",
      },
    );
  }
  const parsed = followedSchema.safeParse(value);
  if (parsed.success) return measuredChoices(parsed.data.devices, { from: path, unmeasured });
  const [{ path: field, message }] = parsed.error.issues;
  throw new UsageError(`${path} is a damaged recommendation: ${field.map(String).join(".") || "it"}: ${message}`, {
    code: "BAD_BENCHMARK",
    remedy: "make it again: dirtmap recommend --output FILE",
  });
}

/** Writes a recommendation to a file, as JSON. @throws UsageError `CANNOT_WRITE` */
export function writeRecommendation(path: string, recommendation: Recommendation): void {
  writeJson(path, recommendation);
}
