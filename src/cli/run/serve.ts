import { fileURLToPath } from "node:url";
import { DEFAULTS } from "../../defaults.js";
import { recommendationOf } from "../../evidence/recommend/recommendation.js";
import { openStore, type Store } from "../../evidence/store/store.js";
import { checkBenchmark } from "../../evidence/trackers/file.js";
import { defaultFeedFolder } from "../../observe/feed/folder.js";
import type { EvidenceSource } from "../../observe/server/evidence-source.js";
import { readToken } from "../../observe/server/guard.js";
import { checkExposure, parseListenAddress } from "../../observe/server/listen-address.js";
import { serveDashboard } from "../../observe/server/server.js";
import type { ServeInput } from "../commands/serve.js";
import { linkOf } from "../input/option-scenario-default.js";
import { checkStore } from "../kept/store.js";
import { note, printResult } from "../output.js";
import { type Run, untilAborted } from "../run-command.js";

/** How long a page waits while another process is writing; then it is told to try again. */
const STORE_WAIT_MS = 250;

export const run: Run<ServeInput> = async ({ listen, tokenFile, store, json = false }, { signal, interrupts }) => {
  interrupts.tellFirst(() => {});
  const address = parseListenAddress(listen);
  const token = tokenFile === undefined ? undefined : readToken(tokenFile);
  checkExposure(address, token);
  // A store that can't be used is refused now, not at the first request.
  checkStore(store === undefined ? {} : { store });
  const evidence = evidenceIn(() => openStore(store === false ? undefined : store, { waitMs: STORE_WAIT_MS }));
  await using server = await serveDashboard({
    address,
    token,
    evidence,
    recommend: () => recommended(evidence),
    feedFolder: defaultFeedFolder(),
    page: fileURLToPath(new URL("../../../web", import.meta.url)),
    note,
  });
  if (json) printResult({ url: server.url }, { json, text: () => "" });
  else note(`the dashboard is at ${server.url} · Ctrl-C ends it`);
  await untilAborted(signal);
};

/** The store as the dashboard reads it: opened for each answer, so that runs can be kept meanwhile. */
export function evidenceIn(open: () => Store): EvidenceSource {
  const reading = <T>(read: (store: Store) => T): T => {
    using store = open();
    return read(store);
  };
  return {
    runs: (query) => reading((store) => store.runs(query)),
    run: (id) => reading((store) => store.run(id)),
    benchmarks: (query) => reading((store) => store.benchmarks(query)),
    benchmark: (id) => reading((store) => store.benchmark(id)),
  };
}

/** Returns what `dirtmap recommend` says of the newest benchmark of trackers, for a common link; null: there is none. */
function recommended(evidence: EvidenceSource): object | null {
  const [newest] = evidence.benchmarks({ kind: "trackers", limit: 1 });
  if (newest === undefined) return null;
  const benchmark = checkBenchmark(evidence.benchmark(newest.id).result, `benchmark ${newest.id} of the store`);
  return recommendationOf(benchmark, linkOf({}), DEFAULTS.policy);
}
