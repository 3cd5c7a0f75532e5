import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import type { TraceWriter } from "../../evidence/trace/file.js";
import { EXIT_CODES, exitCodesHelp } from "../exit-codes.js";
import {
  addIntervalOption,
  addMachineOptions,
  addPolicyOptions,
  durationOption,
  type MachineOptions,
  OBSERVE_MS,
  type PolicyOptions,
} from "../input/options.js";
import { printResult, runCommand, warn } from "../output.js";

interface RecordOptions extends MachineOptions, PolicyOptions {
  readonly output: string;
  readonly interval: number;
  readonly duration: number;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap record --output mixed.dtrc
  dirtmap record --scenario nic-pair --interval 20ms --duration 1m --output nic-pair.dtrc
  dirtmap predict --trace nic-pair.dtrc --bandwidth 10Gbit
  dirtmap replay nic-pair.dtrc

The trace says which pages each tracker's owner dirtied in each interval, and nothing of what was written (docs/trace.md).
Ctrl-C ends it early, and whole.

There is no --host linux here: which pages a guest on this machine's devices dirties, its VMM's trackers know, and each has one
reader. A VMM that is written with Dirtmap's library records with TraceWriter (dirtmap/evidence).
`;

/** `dirtmap record`: what each device dirtied per interval, in a file. */
export function addRecord(program: Command): void {
  const command = program
    .command("record")
    .description(
      "Records which pages each device dirties, interval by interval, to be replayed or predicted from elsewhere",
    );
  addIntervalOption(addPolicyOptions(addMachineOptions(command)), DEFAULTS.recordIntervalMs)
    .requiredOption("-o, --output <file>", "the trace to write")
    .addOption(durationOption("--duration <duration>", "how long", OBSERVE_MS, DEFAULTS.recordMs))
    .option("--json", "print the result as JSON")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`)
    .action((options: RecordOptions) => record(options));
}

async function record({ json = false, output, ...options }: RecordOptions): Promise<void> {
  const onInterrupt = () => warn("ending the recording; Ctrl-C once more forces");
  await runCommand({ json, onInterrupt }, async (signal) => {
    const [{ checkMemory, readRequest }, { openMachine }, { observeMachine }, { TraceWriter }] = await Promise.all([
      import("../input/settings.js"),
      import("../sites/hosts.js"),
      import("../run/shared/observe-machine.js"),
      import("../../evidence/trace/file.js"),
    ]);
    const { scenario, description, policy, design } = readRequest(options);
    checkMemory(description, 1);
    const { withDisks } = await import("../sites/emulated/disks.js");
    using disks = withDisks(description);
    await using machine = await openMachine(disks.description);
    let writer: TraceWriter | undefined;
    let elapsedMs = 0;
    try {
      const seen = await observeMachine({
        machine,
        policy,
        design,
        intervalMs: options.interval,
        durationMs: options.duration,
        signal,
        host: "emulated",
        scenario,
        onHeader: async (header) => {
          writer = await TraceWriter.create(output, header);
        },
        onInterval: async (interval) => {
          elapsedMs += interval.elapsedMs;
          await writer?.add(interval);
        },
      });
      // Cancelled before the first interval was over: nothing was written.
      if (seen === null || writer === undefined) throw signal.reason;
      await writer.end();
      for (const owner of seen.header.unread) {
        warn(`the log of ${owner} can be read only once it is stopped: it is not in the trace`);
      }
      const { formatMs, formatSize } = await import("../../observe/format.js");
      const { intervals, bytes } = writer;
      printResult(
        { output, intervals, elapsedMs, bytes },
        {
          json,
          text: (safe) => `${safe.output}: ${intervals} intervals, ${formatMs(elapsedMs)}, ${formatSize(bytes)}`,
        },
      );
      return EXIT_CODES.done.code;
    } finally {
      await writer?.[Symbol.asyncDispose]();
    }
  });
}
