import { type Command, Option } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { explain } from "../../errors.js";
import { reportPath } from "../../evidence/report/write-report.js";
import type { PredictedOutcome } from "../../migration/report.js";
import { parseDuration, parseLimit, writeDuration } from "../../units.js";
import { exitCodeOf, exitCodesHelp } from "../exit-codes.js";
import type { EmulatedMachine } from "../hosts.js";
import { leaveReport } from "../leave-report.js";
import {
  addMachineOptions,
  addMigrationOptions,
  addPolicyOptions,
  addStoreOption,
  argument,
  durationWithin,
  type MachineOptions,
  type MigrationOptions,
  OBSERVE_MS,
  orElse,
  orScenario,
  type PolicyOptions,
  type StoreOption,
} from "../options.js";
import { err, mayColor, noteEvent, printResult, runCommand, note as tell } from "../output.js";
import type { Request } from "../request.js";
import { addTlsOptions, readEndpoint, type TlsOptions } from "../tls-options.js";

interface MigrateCommandOptions extends MachineOptions, PolicyOptions, MigrationOptions, TlsOptions, StoreOption {
  readonly to?: string;
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
with Dirtmap's library (its Host, trackers and migrate()) migrates them; \`dirtmap plan --host linux\` has the
options with which QEMU does.

Ctrl-C cancels, and the source goes on running; once more forces. Without --to the destination is a second process on
this machine. Options that are left out are the scenario's to say.

If the destination does not confirm that it runs, the source stays paused and waits for \`dirtmap resume\` or
\`dirtmap abort\`, which it prints on standard error, with --json as a line {"event":"undecided", …}. The first Ctrl-C does
not end that wait; a second does, and so does the end of --decide: the source's memory is gone then.
`;

/** `dirtmap migrate`: runs a scenario's machine and moves it. */
export function addMigrate(program: Command): void {
  const command = program.command("migrate").description("Runs a scenario's machine and live-migrates it");
  addTlsOptions(
    addMigrationOptions(
      addStoreOption(addPolicyOptions(addMachineOptions(command)), { optional: true }).option(
        "--to <address>",
        "tls://HOST:PORT or tcp://HOST:PORT of a `dirtmap receive` (default: a second process on this machine)",
      ),
    ),
  )
    .addOption(
      new Option("--verify <when>", "compare the two memories once the destination runs, or before it may")
        .choices(["after", "before"])
        .default(DEFAULTS.verify, DEFAULTS.verify),
    )
    .option(
      "--run-after <duration>",
      `how long the workload runs on at the destination before it is checked${orScenario(writeDuration(DEFAULTS.runAfterMs))}`,
      argument(parseDuration),
    )
    .option("--journal <folder>", "where to keep the record of who may run the machine")
    .option(
      "--decide <duration>",
      `end, and lose the source's memory, if the handover is not confirmed and nobody says \`resume\` or \`abort\` within this time${orElse(writeDuration(DEFAULTS.decideMs))}`,
      argument(parseLimit),
    )
    .option(
      "--predict [duration]",
      `watch the machine first and predict the migration; the report has both${orElse(writeDuration(DEFAULTS.observeMs))}`,
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

async function run(options: MigrateCommandOptions): Promise<void> {
  const { json = false, quiet = false } = options;
  let note = tell;
  const onInterrupt = () => note("cancelling: the source goes on running; Ctrl-C once more forces");
  await runCommand({ json, onInterrupt }, async (signal, interrupts) => {
    // All that may be wrong with what was asked for is found out before anything is started.
    const { checkMemory, readRequest } = await import("../request.js");
    const request = readRequest(options);
    const { scenario, description: wanted, policy, design, defaults } = request;
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
        import("../../migration/network.js"),
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
      { tidyUp },
      { handingOver, undecidedEvent, undecidedLines, waitingForDecision },
      { DEFAULT_TIMEOUTS },
      { watchConditions },
    ] = await Promise.all([
      import("../local-destination.js"),
      import("../granted.js"),
      import("../../observe/live-view.js"),
      import("../../observe/feed/publish.js"),
      import("../../migration/journal.js"),
      import("../report-text.js"),
      import("../disks.js"),
      import("../tidy.js"),
      import("../undecided.js"),
      import("../../migration/deadline.js"),
      import("../run-conditions.js"),
    ]);
    await tidyUp(options.journal);
    using disks = withDisks(wanted);
    const { description } = disks;
    await using machine = await openMachine(description);
    const choices = chooseTrackers(await probeMachine(machine), policy);
    signal.throwIfAborted();
    if (options.predict !== undefined && !quiet) note("watching the machine, to foretell its migration");
    const predicted =
      options.predict === undefined ? undefined : await foretold(machine, request, options, { signal, note });

    await using local =
      remote === undefined ? await startLocalDestination(signal, grantsOf(description), options.journal) : undefined;
    const destination = remote ?? (await readEndpoint(local?.address ?? "", "client", options));
    const downtimeLimitMs = options.downtimeLimit ?? defaults.downtimeLimit;
    const migration = newMigrationId();
    const header = migrationHeader(
      { id: migration, scenario, startedAt: new Date(), downtimeLimitMs },
      description,
      choices,
    );
    using view = quiet
      ? undefined
      : new LiveView({ stream: err, color: mayColor(err), devices: header.devices, downtimeLimitMs });
    if (view !== undefined) note = (text) => view.note(text);

    await using _feed = options.feed ? await publishFeed(header).catch(noted(note)) : undefined;
    // Where nobody listens, the migration counts nothing for it.
    using recorder = store.store === false && options.report === undefined ? undefined : new ReadRecorder();

    const asked = {
      policy,
      design,
      downtimeLimitMs,
      bandwidth: options.bandwidth ?? defaults.bandwidth ?? DEFAULTS.bandwidth,
      channels: options.channels ?? defaults.channels,
      maxRounds: options.maxRounds,
      verify: options.verify,
      runAfterMs: options.runAfter ?? defaults.runAfter,
    };
    const moved = { host: machine.host.name, description, endpoint: destination.endpoint, local: remote === undefined };
    const conditionsUntilNow = watchConditions(moved, asked);
    let held: Disposable | undefined;
    const report = await migrate({
      machine,
      description,
      transport: sourceTransport(destination),
      ...asked,
      signal,
      migration,
      ...(options.journal === undefined ? {} : { journalDirectory: options.journal }),
      ...(predicted === undefined ? {} : { predicted }),
      ...(options.decide === undefined ? {} : { decideMs: options.decide }),
      onGivenUp: () => {
        held = interrupts.hold(handingOver(DEFAULT_TIMEOUTS.runningMs, note));
      },
      onUndecided: (undecided) => {
        held = interrupts.hold(waitingForDecision(undecided, note));
        if (json) {
          view?.clear();
          noteEvent(undecidedEvent(undecided));
        } else for (const line of undecidedLines(undecided)) note(line);
      },
      onSettled: () => held?.[Symbol.dispose](),
    });
    view?.[Symbol.dispose]();
    const reads = recorder?.reads ?? [];
    const conditions = conditionsUntilNow();
    await keepMigration(store, { header, report, reads, conditions }, note);
    if (options.report !== undefined) {
      const { migrationDocument } = await import("../migration-document.js");
      const context = { scenario, memoryBytes: description.memory, reads, conditions };
      leaveReport(options.report, migrationDocument(report, context), note);
    }
    printResult({ ...report, conditions }, { json, text: reportText });
    return exitCodeOf(report);
  });
}

/** What the migration will be; undefined, with a note, where that can't be told. The trackers are off again when it resolves. */
async function foretold(
  machine: EmulatedMachine,
  request: Request,
  options: MigrateCommandOptions,
  { signal, note }: { signal: AbortSignal; note: (text: string) => void },
): Promise<PredictedOutcome | undefined> {
  try {
    return await foretell(machine, request, options, signal);
  } catch (error) {
    signal.throwIfAborted();
    note(`the migration is not foretold: ${explain(error)}`);
    return undefined;
  }
}

async function foretell(
  machine: EmulatedMachine,
  { scenario, policy, design, defaults }: Request,
  options: MigrateCommandOptions,
  signal: AbortSignal,
): Promise<PredictedOutcome> {
  const [{ estimateLink, observeForPrediction, predictedConditions }, { predict, predictedOutcome }] =
    await Promise.all([import("../observe-machine.js"), import("../../evidence/predict/predict.js")]);
  const seen = await observeForPrediction({
    machine,
    policy,
    design,
    intervalMs: DEFAULTS.observeIntervalMs,
    durationMs: options.predict === true || options.predict === undefined ? DEFAULTS.observeMs : options.predict,
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
