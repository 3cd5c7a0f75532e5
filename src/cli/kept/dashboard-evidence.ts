import { z } from "zod";
import { DEFAULTS } from "../../defaults.js";
import { designsResultSchema } from "../../evidence/designs/result.js";
import { recommendationOf } from "../../evidence/recommend/recommendation.js";
import { recommendationSchema } from "../../evidence/recommend/result.js";
import type { Store } from "../../evidence/store/store.js";
import { checkBenchmark } from "../../evidence/trackers/file.js";
import { trackerBenchmarkSchema } from "../../evidence/trackers/result.js";
import type { EvidenceSource } from "../../observe/server/evidence-source.js";
import { linkOf } from "../input/option-scenario-default.js";

/** The forms of what the store keeps besides runs. */
const SCHEMAS = {
  benchmark: z.discriminatedUnion("kind", [trackerBenchmarkSchema, designsResultSchema]),
  recommendation: recommendationSchema,
};

/** The store as the dashboard reads it: opened for each answer, so that runs can be kept meanwhile. */
export function evidenceIn(open: () => Store): EvidenceSource {
  const reading = <T>(read: (store: Store) => T): T => {
    using store = open();
    return read(store);
  };
  return {
    schemas: SCHEMAS,
    runs: (query) => reading((store) => store.runs(query)),
    run: (id) => reading((store) => store.run(id)),
    benchmarks: (query) => reading((store) => store.benchmarks(query)),
    benchmark: (id) => reading((store) => store.benchmark(id)),
    recommendation: () => recommendationIn(open),
  };
}

/** What `dirtmap recommend` says of the newest benchmark of trackers, for a common link; null: there is no benchmark. */
function recommendationIn(open: () => Store): object | null {
  using store = open();
  const [newest] = store.benchmarks({ kind: "trackers", limit: 1 });
  if (newest === undefined) return null;
  const benchmark = checkBenchmark(store.benchmark(newest.id).result, `benchmark ${newest.id} of the store`);
  return recommendationOf(benchmark, linkOf({}), DEFAULTS.policy);
}
