import { dirname, resolve } from "node:path";
import { DEFAULTS } from "../../../defaults.js";
import { benchTrackers } from "../../../evidence/trackers/bench.js";
import { estimateMigration } from "../../../evidence/trackers/estimate.js";
import { writeBenchmark } from "../../../evidence/trackers/file.js";
import type { BenchSite } from "../../../evidence/trackers/site.js";
import { checkWritable } from "../../../sys/output-file.js";
import type { BenchTrackersInput } from "../../commands/bench/trackers.js";
import { linkOf, type Said } from "../../input/option-scenario-default.js";
import { servedSockets } from "../../input/options/host.js";
import { readScenario } from "../../input/scenario.js";
import { checkHostOptions } from "../../input/which-go-together.js";
import { leaveReport } from "../../kept/leave-report.js";
import { checkStore, keepBenchmark } from "../../kept/store.js";
import { note, printResult } from "../../output.js";
import type { Run } from "../../run-command.js";
import { emulatedSite } from "../../sites/emulated/bench-machine.js";
import { checkMemory } from "../../sites/emulated/check-memory.js";
import { openLinuxHost } from "../../sites/hosts.js";
import { linuxSite } from "../../sites/linux/bench-machine.js";
import { servedSite } from "../../sites/vfio-user/bench-machine.js";
import { progressText } from "../../text/progress-text.js";
import { trackersDocument } from "../../text/trackers-document.js";
import { trackersText } from "../../text/trackers-text.js";

export const run: Run<BenchTrackersInput> = async (input, { signal, typed }) => {
  const { output, report, quick = false, json = false } = input;
  checkHostOptions(typed, input.host, ["device", "memory"]);
  // What can't be kept is found out before it is measured.
  for (const file of [output, report]) if (file !== undefined) checkWritable(dirname(resolve(file)));
  checkStore(input);
  await using opened = await openSite(input, signal);
  const link = linkOf(input, opened.said);
  const benchmark = await benchTrackers({
    site: opened.site,
    quick,
    signal,
    progress: (progress) => note(progressText(progress)),
  });
  const { kind, host, machine, takenAt } = benchmark;
  keepBenchmark(input, { kind, host, scenario: benchmark.scenario ?? "", machine, takenAt, result: benchmark }, note);
  const estimates = benchmark.devices.flatMap((device) =>
    device.trackers.map((figures) => {
      const { tracker, granule } = figures;
      return { device: device.id, tracker, granule, estimate: estimateMigration(benchmark, device, figures, link) };
    }),
  );
  printResult({ ...benchmark, link, estimates }, { json, text: (safe) => trackersText(safe, link) });
  // Last: what can't be written after all is not lost by it.
  if (output !== undefined) {
    writeBenchmark(output, benchmark);
    note(`written to ${output}`);
  }
  if (report !== undefined) leaveReport(report, trackersDocument(benchmark, link), note);
};

/** Where to measure; what was opened for it is disposed. */
interface OpenedSite extends AsyncDisposable {
  readonly site: BenchSite;
  /** By its scenario. */
  readonly said: Said;
}

async function openSite(input: BenchTrackersInput, signal: AbortSignal): Promise<OpenedSite> {
  const { host, device, memory: memoryBytes = DEFAULTS.mappedBytes } = input;
  const nothing = { said: {}, [Symbol.asyncDispose]: async () => {} };
  const sockets = servedSockets(host);
  if (sockets !== null) return { ...nothing, site: await servedSite(sockets, { only: device, memoryBytes }) };
  if (host === "linux") {
    const linux = await openLinuxHost();
    const site = await linuxSite(linux, { names: device, memoryBytes, signal });
    return { said: {}, site, [Symbol.asyncDispose]: () => linux[Symbol.asyncDispose]() };
  }
  const { scenario, description, said } = readScenario(input);
  checkMemory(description, 1);
  return { ...nothing, said, site: emulatedSite(scenario, description, { only: device }) };
}
