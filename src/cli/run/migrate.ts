import { DEFAULTS } from "../../defaults.js";
import { explain } from "../../errors.js";
import { predictedOutcome } from "../../evidence/predict/predict.js";
import { DEFAULT_TIMEOUTS } from "../../migration/deadline.js";
import { newMigrationId } from "../../migration/journal.js";
import { sourceTransport } from "../../migration/network.js";
import type { PredictedOutcome } from "../../migration/report.js";
import { migrate } from "../../migration/source.js";
import { publishFeed } from "../../observe/feed/publish.js";
import { LiveView } from "../../observe/live-view.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { probeMachine } from "../../tracking/probe.js";
import type { MigrateInput } from "../commands/migrate.js";
import { exitCodeOf } from "../exit-codes.js";
import { readEndpoint } from "../input/endpoint.js";
import { grantsOf } from "../input/granted.js";
import { type Asked, readScenario } from "../input/scenario.js";
import { leaveReport } from "../kept/leave-report.js";
import { keepMigration, migrationHeader, ReadRecorder } from "../kept/record-run.js";
import { watchConditions } from "../kept/run-conditions.js";
import { storeOrNone } from "../kept/store.js";
import { tidyUp } from "../kept/tidy.js";
import { err, mayColor, noteEvent, printResult, note as tell } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { withDisks } from "../sites/emulated/disks.js";
import { type EmulatedMachine, openMachine } from "../sites/hosts.js";
import { startLocalDestination } from "../sites/local-destination.js";
import { migrationDocument } from "../text/migration-document.js";
import { reportText } from "../text/report-text.js";
import { handingOver, undecidedEvent, undecidedLines, waitingForDecision } from "../text/undecided-text.js";
import { predictMachine } from "./shared/predict-machine.js";

export const run: Run<MigrateInput> = async (input, { signal, interrupts }) => {
  const { json = false, quiet = false } = input;
  let note = tell;
  interrupts.tellFirst(() => note("cancelling: the source goes on running; a second Ctrl-C forces"));
  // All that may be wrong with what was asked for is found out before anything is started.
  const asked = readScenario(input);
  const { scenario, policy, design, settings } = asked;
  checkMemory(asked.description, input.to === undefined ? 2 : 1);
  const store = storeOrNone(input, note);
  const remote = input.to === undefined ? undefined : await readEndpoint(input.to, "client", input);
  await tidyUp(input.journal);

  using disks = withDisks(asked.description);
  const { description } = disks;
  await using machine = await openMachine(description);
  const choices = chooseTrackers(await probeMachine(machine), policy);
  signal.throwIfAborted();
  if (input.predict !== undefined && !quiet) note("watching the machine, to predict its migration");
  const predicted =
    input.predict === undefined ? undefined : await predictedFirst(machine, asked, input, { signal, note });

  await using local =
    remote === undefined ? await startLocalDestination(signal, grantsOf(description), input.journal) : undefined;
  const destination = remote ?? (await readEndpoint(local?.ready ?? "", "client", input));
  const downtimeLimitMs = settings.downtimeLimit;
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

  await using _feed = input.feed ? await publishFeed(header).catch(noted(note)) : undefined;
  // Where nobody listens, the migration counts nothing for it.
  using recorder = store.store === false && input.report === undefined ? undefined : new ReadRecorder();

  const how = {
    policy,
    design,
    downtimeLimitMs,
    bandwidth: settings.bandwidth,
    channels: settings.channels,
    maxRounds: input.maxRounds,
    verify: input.verify,
    runAfterMs: settings.runAfter,
  };
  const moved = { host: machine.host.name, description, endpoint: destination.endpoint, local: remote === undefined };
  const conditionsUntilNow = watchConditions(moved, how);
  let held: Disposable | undefined;
  const report = await migrate({
    machine,
    description,
    transport: sourceTransport(destination),
    ...how,
    signal,
    migration,
    ...(input.journal === undefined ? {} : { journalDirectory: input.journal }),
    ...(predicted === undefined ? {} : { predicted }),
    ...(input.decide === undefined ? {} : { decideMs: input.decide }),
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
  keepMigration(store, { header, report, reads, conditions }, note);
  if (input.report !== undefined) {
    const context = { scenario, memoryBytes: description.memory, reads, conditions };
    leaveReport(input.report, migrationDocument(report, context), note);
  }
  printResult({ ...report, conditions }, { json, text: reportText });
  return exitCodeOf(report);
};

/** Predicts what the migration will be; undefined, with a note, if that can't be told. */
async function predictedFirst(
  machine: EmulatedMachine,
  asked: Asked,
  { predict = true, store, maxRounds, verify }: MigrateInput,
  { signal, note }: { signal: AbortSignal; note: (text: string) => void },
): Promise<PredictedOutcome | undefined> {
  const options = {
    ...(store === undefined ? {} : { store }),
    duration: predict === true ? DEFAULTS.observeMs : predict,
    interval: DEFAULTS.observeIntervalMs,
    maxRounds,
    verifyFirst: verify === "before",
  };
  try {
    return predictedOutcome(await predictMachine(machine, asked, options, signal));
  } catch (error) {
    signal.throwIfAborted();
    note(`the migration is not predicted: ${explain(error)}`);
    return undefined;
  }
}

/** Tells of an error, and goes on without. */
function noted(note: (text: string) => void): (error: unknown) => undefined {
  return (error) => {
    note(explain(error));
  };
}
