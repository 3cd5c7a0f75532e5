import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { EXIT_CODES, exitCodesHelp } from "../exit-codes.js";
import {
  addMachineOptions,
  addMigrationOptions,
  addObserveOptions,
  addPolicyOptions,
  addStoreOption,
  type MachineOptions,
  type MigrationOptions,
  type ObserveOption,
  OF_SCENARIOS,
  openStoreOf,
  type PolicyOptions,
  refuseOptions,
  type StoreOption,
} from "../input/options.js";
import { printResult, runCommand } from "../output.js";

interface PredictOptions extends MachineOptions, PolicyOptions, MigrationOptions, ObserveOption, StoreOption {
  readonly trace?: string;
  readonly run?: readonly string[];
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap predict
  dirtmap predict --scenario no-tracker --downtime-limit 50ms
  dirtmap predict --bandwidth 1Gbit --observe 5s --json
  dirtmap predict --trace production.dtrc --bandwidth 10Gbit --downtime-limit 300ms
  dirtmap migrate --json > run.json; dirtmap predict --run run.json

The speed of the link is measured on loopback, and what stopping and starting takes is what it took the last migrations in the store;
or both are taken from the reports of migrations over the same link (--run). --bandwidth limits it. Nothing is moved: trackers are
switched on, read at an interval, and switched off again.

The exit code says whether the migration converges (0) or not (4), so that \`dirtmap predict && dirtmap migrate\` moves only what can be.
`;

/** `dirtmap predict`: what a migration would be. */
export function addPredict(program: Command): void {
  const command = program
    .command("predict")
    .description(
      "Says whether a migration converges, in how many rounds and with what downtime, and who is in its way",
    );
  addMigrationOptions(
    addObserveOptions(addStoreOption(addPolicyOptions(addMachineOptions(command)), { optional: true })),
  )
    .option("--trace <file>", "predict from what `dirtmap record` wrote, instead of from a scenario")
    .option("--run <file...>", "reports of earlier migrations over the same link (`migrate --json`)")
    .option("--json", "print the result as JSON")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`)
    .action((options: PredictOptions) =>
      runCommand({ json: options.json === true }, async (signal) => {
        if (options.trace !== undefined) {
          refuseOptions(command, OF_SCENARIOS, "--trace has what was observed of a machine already");
        }
        const { prediction, scenario } = await predicted(options, signal);
        const { predictText } = await import("../text/predict-text.js");
        printResult(
          { scenario, trace: options.trace ?? null, ...prediction },
          { json: options.json === true, text: predictText },
        );
        return prediction.converges ? EXIT_CODES.done.code : EXIT_CODES.notConverging.code;
      }),
    );
}

async function predicted(options: PredictOptions, signal: AbortSignal) {
  const [{ checkMemory, readRequest }, { estimateLink, observeForPrediction, predictedConditions }, { predict }] =
    await Promise.all([
      import("../input/settings.js"),
      import("../run/shared/observe-machine.js"),
      import("../../evidence/predict/predict.js"),
    ]);
  // A store that was asked for and can't be used is told of now, and not once the machine was watched.
  if (options.store !== undefined) (await openStoreOf(options))?.[Symbol.dispose]();
  if (options.trace !== undefined) {
    const { readTrace } = await import("../../evidence/trace/file.js");
    const { header, intervals } = await readTrace(options.trace);
    const channels = options.channels ?? DEFAULTS.channels;
    const link = await estimateLink({ ...linkOptions(options), channels, scenario: header.scenario, signal });
    const conditions = predictedConditions(options, TRACE_DEFAULTS, DEFAULTS.readMs);
    return { prediction: predict({ ...header, intervals }, link, conditions), scenario: header.scenario };
  }
  const { scenario, description, policy, design, defaults } = readRequest(options);
  checkMemory(description, 1);
  const [{ openMachine }, { withDisks }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../sites/emulated/disks.js"),
  ]);
  using disks = withDisks(description);
  await using machine = await openMachine(disks.description);
  const { observe: durationMs, interval: intervalMs } = options;
  const seen = await observeForPrediction({
    machine,
    policy,
    design,
    intervalMs,
    durationMs,
    signal,
    host: "emulated",
    scenario,
  });
  signal.throwIfAborted();
  if (seen === null) throw new Error("a machine that was watched and never read");
  const channels = options.channels ?? defaults.channels;
  const link = await estimateLink({ ...linkOptions(options), channels, scenario, signal });
  const conditions = predictedConditions(options, defaults, seen.readMs);
  return { prediction: predict(seen.observation, link, conditions), scenario };
}

function linkOptions({ run = [], store }: PredictOptions) {
  return { reports: run, ...(store === undefined ? {} : { store }) };
}

/** What a scenario would say of a migration; a trace says nothing of it. */
const TRACE_DEFAULTS = { downtimeLimit: DEFAULTS.downtimeLimitMs } as const;
