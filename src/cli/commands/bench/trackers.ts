import { dirname, resolve } from "node:path";
import type { Command } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { reportPath } from "../../../evidence/report/write-report.js";
import type { BenchSite } from "../../../evidence/trackers/site.js";
import { checkWritable } from "../../../sys/output-file.js";
import { EXIT_CODES } from "../../exit-codes.js";
import {
  addHostOptions,
  addLinkOptions,
  addMachineOptions,
  addStoreOption,
  argument,
  checkHostOptions,
  type HostOptions,
  type LinkOptions,
  type MachineOptions,
  openStoreOf,
  orScenario,
  type StoreOption,
  servedSockets,
} from "../../input/options.js";
import { leaveReport } from "../../kept/leave-report.js";
import { note, printResult, runCommand } from "../../output.js";

interface BenchTrackersOptions extends HostOptions, MachineOptions, LinkOptions, StoreOption {
  readonly output?: string;
  readonly report?: string;
  readonly quick?: boolean;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap bench trackers
  dirtmap bench trackers --scenario nic-pair --quick --output bench.json
  dirtmap bench trackers --device vf0 --bandwidth 25Gbit --downtime-limit 50ms
  dirtmap bench trackers --host linux --device 3b:00.1 --memory 4G
  dirtmap bench trackers --host vfio-user:/run/user/1000/mlx5 --json

For each device and each tracker that it has: what it costs to start, to read and to stop, how many of its DMA writes the
device loses while it is tracked, and how exact the tracker is; from that, what a migration would make of it. \`dirtmap
recommend\` decides by it. It is kept in the store, and with --output also in a file.

On the emulated host a model is measured. With --host linux devices are opened that are on a VFIO driver and in nobody's use,
which resets them; no driver tells them to do DMA, so that only what costs a reader can be measured.
`;

/** `dirtmap bench trackers`: what each tracker of each device costs, and how exact it is. */
export function addBenchTrackers(bench: Command): void {
  const command = bench
    .command("trackers")
    .description("Measures each tracker of each device: what it costs, and how exact it is");
  addHostOptions(addMachineOptions(command), "all that can be measured", { served: true, everywhere: true });
  addStoreOption(addLinkOptions(command, orScenario), { optional: true })
    .option("-o, --output <file>", "write the benchmark to a file, for `dirtmap recommend --from`")
    .option("--report <file>", "write a report with plots: FILE.md or FILE.html", argument(reportPath))
    .option("--quick", "few repetitions: seconds instead of minutes, and wider ranges")
    .option("--json", "print the benchmark as JSON")
    .addHelpText("after", NOTES)
    .action((options: BenchTrackersOptions) =>
      runCommand({ json: options.json === true }, async (signal) => {
        checkHostOptions(command, options.host, ["device", "memory"]);
        await run(options, signal);
        return EXIT_CODES.done.code;
      }),
    );
}

async function run(options: BenchTrackersOptions, signal: AbortSignal): Promise<void> {
  const { output, report, quick = false, json = false } = options;
  // What can't be kept is found out before it is measured.
  for (const file of [output, report]) if (file !== undefined) checkWritable(dirname(resolve(file)));
  (await openStoreOf(options))?.[Symbol.dispose]();
  const [{ benchTrackers }, { estimateMigration }, { writeBenchmark }, { trackersText }, { progressText }, { linkOf }] =
    await Promise.all([
      import("../../../evidence/trackers/bench.js"),
      import("../../../evidence/trackers/estimate.js"),
      import("../../../evidence/trackers/file.js"),
      import("../../text/trackers-text.js"),
      import("../../text/progress-text.js"),
      import("../../input/link.js"),
    ]);
  await using opened = await openSite(options, signal);
  const link = linkOf(options, opened.defaults);
  const benchmark = await benchTrackers({
    site: opened.site,
    quick,
    signal,
    progress: (progress) => note(progressText(progress)),
  });
  const { kind, host, machine, takenAt } = benchmark;
  using store = await openStoreOf(options);
  const id = store?.saveBenchmark({
    kind,
    host,
    scenario: benchmark.scenario ?? "",
    machine,
    takenAt,
    result: benchmark,
  });
  if (id !== undefined) note(`kept as benchmark ${id} of ${store?.path}`);
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
  if (report !== undefined) {
    const { trackersDocument } = await import("../../text/trackers-document.js");
    leaveReport(report, trackersDocument(benchmark, link), note);
  }
}

/** Where to measure; what was opened for it is disposed. */
interface OpenedSite extends AsyncDisposable {
  readonly site: BenchSite;
  readonly defaults: LinkOptions;
}

async function openSite(options: BenchTrackersOptions, signal: AbortSignal): Promise<OpenedSite> {
  const { host, device, memory: memoryBytes = DEFAULTS.mappedBytes } = options;
  const nothing = { defaults: {}, [Symbol.asyncDispose]: async () => {} };
  const sockets = servedSockets(host);
  if (sockets !== null) {
    const { servedSite } = await import("../../sites/vfio-user/bench-machine.js");
    return { ...nothing, site: await servedSite(sockets, { only: device, memoryBytes }) };
  }
  if (host === "linux") {
    const [{ openLinuxHost }, { linuxSite }] = await Promise.all([
      import("../../sites/hosts.js"),
      import("../../sites/linux/bench-machine.js"),
    ]);
    const linux = await openLinuxHost();
    const site = await linuxSite(linux, { names: device, memoryBytes, signal });
    return { defaults: {}, site, [Symbol.asyncDispose]: () => linux[Symbol.asyncDispose]() };
  }
  const [{ checkMemory, readRequest }, { emulatedSite }] = await Promise.all([
    import("../../input/settings.js"),
    import("../../sites/emulated/bench-machine.js"),
  ]);
  const { scenario, description, defaults } = readRequest(options);
  checkMemory(description, 1);
  return { ...nothing, defaults, site: emulatedSite(scenario, description, { only: device }) };
}

/** @throws UsageError `CANNOT_WRITE` */
