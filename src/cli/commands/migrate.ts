import { type Command, Option } from "commander";
import { explain } from "../../errors.js";
import { reportPath } from "../../evidence/report/write-report.js";
import type { PredictedOutcome } from "../../migration/report.js";
import { MAX_CHANNELS } from "../choices.js";
import { exitCodeOf, exitCodesHelp } from "../exit-codes.js";
import type { EmulatedMachine } from "../hosts.js";
import { leaveReport } from "../leave-report.js";
import {
  addMachineOptions,
  addPolicyOptions,
  addStoreOption,
  argument,
  downtimeLimit,
  durationWithin,
  type MachineOptions,
  OBSERVE_MS,
  type PolicyOptions,
  type StoreOption,
  wholeNumber,
} from "../options.js";
import { mayColor, runCommand } from "../output.js";
import { addTlsOptions, readEndpoint, type TlsOptions } from "../tls-options.js";
import { parseBandwidth, parseDuration } from "../units.js";

interface MigrateOptions extends MachineOptions, PolicyOptions, TlsOptions, StoreOption {
  readonly to?: string;
  readonly downtimeLimit?: number;
  readonly bandwidth?: number;
  readonly channels?: number;
  readonly maxRounds?: number;
  readonly verify: "after" | "before";
  readonly runAfter?: number;
  readonly journal?: string;
  readonly decide?: number;
  readonly feed: boolean;
  /** Milliseconds; true: the default. */
  readonly predict?: number | true;
  readonly report?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const EXAMPLES = `
Examples:
  dirtmap migrate
  dirtmap migrate --scenario nic-pair --memory 1G --downtime-limit 20ms
  dirtmap migrate --tracker vf0=iommu --granule vf0=4K --domain shared
  dirtmap migrate --scenario case-c --untracked suspend --json
  dirtmap migrate --design type1 --downtime-limit 5s
  dirtmap migrate --to tls://dst.example.com:7700 --tls-folder certs --bandwidth 10Gbit --channels 4

There is no --host linux here: a guest on this machine's devices needs a VMM, which Dirtmap is not. One that is written
with Dirtmap's library (its Host, trackers and migrate(), src/index.ts) migrates them; \`dirtmap plan --host linux\` has the
options with which QEMU does.

Ctrl-C cancels, and the source goes on running; once more forces. Without --to the destination is a second process on
this machine. Options that are left out are the scenario's to say.
`;

/** `dirtmap migrate`: runs a scenario's machine and moves it. */
export function addMigrate(program: Command): void {
  const command = program.command("migrate").description("Runs a scenario's machine and live-migrates it");
  addTlsOptions(
    addStoreOption(addPolicyOptions(addMachineOptions(command)), { optional: true })
      .option("--to <address>", "tls://HOST:PORT or tcp://HOST:PORT of a `dirtmap receive`")
      .option(
        "--downtime-limit <duration>",
        "expected downtime at which the machine may be stopped: 50ms",
        argument(downtimeLimit),
      )
      .option("--bandwidth <rate>", "500M (bytes per second), 10Gbit, or unlimited", argument(parseBandwidth))
      .option("--channels <number>", "connections that pages travel over", wholeNumber(1, MAX_CHANNELS))
      .option("--max-rounds <number>", "pre-copy rounds at most", wholeNumber(1, 10_000)),
  )
    .addOption(
      new Option("--verify <when>", "compare the two memories once the destination runs, or before it may")
        .choices(["after", "before"])
        .default("after"),
    )
    .option(
      "--run-after <duration>",
      "how long the workload runs on at the destination before it is checked",
      argument(parseDuration),
    )
    .option("--journal <folder>", "where to keep the record of who may run the machine")
    .option(
      "--decide <duration>",
      "how long to wait for `resume` or `abort` where the handover was not confirmed (default: on a terminal until told, elsewhere 0s)",
      argument(parseDuration),
    )
    .option(
      "--predict [duration]",
      "watch the machine first (default: 2s) and foretell the migration; the report has both",
      durationWithin(OBSERVE_MS),
    )
    .option("--report <file>", "write the report with plots, too: FILE.md or FILE.html", argument(reportPath))
    .option(
      "--no-feed",
      "publish no live feed: `dirtmap serve` and `dirtmap top` don't see the migration while it runs",
    )
    .option("--json", "print the report as JSON")
    .option("-q, --quiet", "show nothing while it runs")
    .addHelpText("after", `${EXAMPLES}\n${exitCodesHelp()}`)
    .action(run);
}

async function run(options: MigrateOptions): Promise<void> {
  const { json = false, quiet = false } = options;
  let note = (text: string): void => {
    process.stderr.write(`${text}\n`);
  };
  const onInterrupt = () => note("cancelling: the source goes on running; Ctrl-C once more forces");
  await runCommand({ json, onInterrupt }, async (signal) => {
    // All that may be wrong with what was asked for is found out before anything is started.
    const { checkMemory, readRequest } = await import("../request.js");
    const { scenario, description: wanted, policy, design, defaults } = readRequest(options);
    checkMemory(wanted, options.to === undefined ? 2 : 1);
    const { checkStore, keepMigration, migrationHeader, ReadRecorder } = await import("../record-run.js");
    const store = await checkStore(options, note);
    const remote = options.to === undefined ? undefined : await readEndpoint(options.to, "client", options);

    const [{ openMachine }, { migrate }, { probeMachine }, { chooseTrackers }, { sourceTransport }] = await Promise.all(
      [
        import("../hosts.js"),
        import("../../migration/source.js"),
        import("../../tracking/probe.js"),
        import("../../tracking/policy.js"),
        import("../../migration/transport/network.js"),
      ],
    );
    const [
      { startLocalDestination },
      { grantsOf },
      { LiveView },
      { publishFeed },
      { newMigrationId },
      { reportText },
      { withDisks },
    ] = await Promise.all([
      import("../local-destination.js"),
      import("../granted.js"),
      import("../../observe/live-view.js"),
      import("../../observe/feed/publish.js"),
      import("../../migration/journal.js"),
      import("../report-text.js"),
      import("../disks.js"),
    ]);
    using disks = withDisks(wanted);
    const { description } = disks;
    await using machine = await openMachine(description);
    const choices = chooseTrackers(await probeMachine(machine), policy);
    signal.throwIfAborted();
    if (options.predict !== undefined && !quiet) note("watching the machine, to foretell its migration");
    const predicted = options.predict === undefined ? undefined : await foretold(machine, options, { signal, note });

    await using local =
      remote === undefined ? await startLocalDestination(signal, grantsOf(description), options.journal) : undefined;
    const destination = remote ?? (await readEndpoint(local?.address ?? "", "client", options));
    const downtimeLimitMs = options.downtimeLimit ?? defaults.downtimeLimit;
    using view = quiet
      ? undefined
      : new LiveView({
          stream: process.stderr,
          color: mayColor(process.stderr),
          devices: choices.map(({ device, tracker }) => ({ id: device, tracker })),
          downtimeLimitMs,
        });
    if (view !== undefined) note = (text) => view.note(text);

    const migration = newMigrationId();
    const header = migrationHeader(
      { id: migration, scenario, startedAt: new Date(), downtimeLimitMs },
      description,
      choices,
    );
    await using _feed = options.feed ? await publishFeed(header).catch(noted(note)) : undefined;
    // Where nobody listens, the migration counts nothing for it.
    using recorder = store.store === false && options.report === undefined ? undefined : new ReadRecorder();

    const bandwidth = options.bandwidth ?? defaults.bandwidth;
    const report = await migrate({
      machine,
      description,
      transport: sourceTransport(destination),
      policy,
      design,
      downtimeLimitMs,
      ...(bandwidth === undefined ? {} : { bandwidth }),
      channels: options.channels ?? defaults.channels,
      ...(options.maxRounds === undefined ? {} : { maxRounds: options.maxRounds }),
      verify: options.verify,
      runAfterMs: options.runAfter ?? defaults.runAfter,
      signal,
      migration,
      ...(options.journal === undefined ? {} : { journalDirectory: options.journal }),
      ...(predicted === undefined ? {} : { predicted }),
      decideMs: options.decide ?? (process.stderr.isTTY ? Number.POSITIVE_INFINITY : 0),
    });
    view?.[Symbol.dispose]();
    const reads = recorder?.reads ?? [];
    await keepMigration(store, { header, report, reads }, note);
    if (options.report !== undefined) {
      const { migrationDocument } = await import("../migration-document.js");
      const context = { scenario, memoryBytes: description.memory, reads };
      leaveReport(options.report, migrationDocument(report, context), note);
    }
    process.stdout.write(json ? `${JSON.stringify(report)}\n` : `${reportText(report)}\n`);
    return exitCodeOf(report);
  });
}

const PREDICT_MS = 2000;
const PREDICT_INTERVAL_MS = 50;

/** What the migration will be; undefined, with a note, where that can't be told. The trackers are off again when it resolves. */
async function foretold(
  machine: EmulatedMachine,
  options: MigrateOptions,
  { signal, note }: { signal: AbortSignal; note: (text: string) => void },
): Promise<PredictedOutcome | undefined> {
  try {
    return await foretell(machine, options, signal);
  } catch (error) {
    signal.throwIfAborted();
    note(`the migration is not foretold: ${explain(error)}`);
    return undefined;
  }
}

async function foretell(
  machine: EmulatedMachine,
  options: MigrateOptions,
  signal: AbortSignal,
): Promise<PredictedOutcome> {
  const [{ readRequest }, { estimateLink, observeForPrediction, predictedConditions }, { predict, predictedOutcome }] =
    await Promise.all([
      import("../request.js"),
      import("../observe-machine.js"),
      import("../../evidence/predict/predict.js"),
    ]);
  const { scenario, policy, design, defaults } = readRequest(options);
  const seen = await observeForPrediction({
    machine,
    policy,
    design,
    intervalMs: PREDICT_INTERVAL_MS,
    durationMs: options.predict === true || options.predict === undefined ? PREDICT_MS : options.predict,
    signal,
    host: machine.host.name,
    scenario,
  });
  signal.throwIfAborted();
  if (seen === null) throw new Error("a machine that was watched and never read");
  const { store } = options;
  const link = await estimateLink({
    ...(store === undefined ? {} : { store }),
    channels: options.channels ?? defaults.channels,
    scenario,
    signal,
  });
  const conditions = {
    ...predictedConditions(options, defaults, seen.readMs),
    verifyFirst: options.verify === "before",
  };
  return predictedOutcome(predict(seen.observation, link, conditions));
}

/** Tells of an error, and goes on without. */
function noted(note: (text: string) => void): (error: unknown) => undefined {
  return (error) => {
    note(explain(error));
  };
}
