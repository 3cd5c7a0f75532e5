import { DEFAULTS } from "../../defaults.js";
import { explain, UsageError } from "../../errors.js";
import { predictedOutcome } from "../../evidence/predict/predict.js";
import { newMigrationId } from "../../migration/journal.js";
import { sourceTransport } from "../../migration/network.js";
import type { PredictedOutcome } from "../../migration/report.js";
import { migrate } from "../../migration/source.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { probeMachine } from "../../tracking/probe.js";
import type { MigrateInput } from "../commands/migrate.js";
import { exitCodeOf } from "../exit-codes.js";
import { readEndpoint } from "../input/endpoint.js";
import { grantsOf } from "../input/granted.js";
import { guestPlace } from "../input/guest-place.js";
import type { PolicyOptions } from "../input/options/policy.js";
import { type Asked, readScenario } from "../input/scenario.js";
import { OF_GUESTS, refuseOptions } from "../input/which-go-together.js";
import { FollowedMigration } from "../kept/followed-migration.js";
import { migrationHeader } from "../kept/record-run.js";
import { watchConditions } from "../kept/run-conditions.js";
import { storeOrNone } from "../kept/store.js";
import { tidyUp } from "../kept/tidy.js";
import { printResult, note as tell } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { withDisks } from "../sites/emulated/disks.js";
import { type EmulatedMachine, openMachine } from "../sites/hosts.js";
import { startLocalDestination } from "../sites/local-destination.js";
import { reportText } from "../text/report-text.js";
import { askingOperator } from "./shared/asking-operator.js";
import { predictMachine } from "./shared/predict-machine.js";

export const run: Run<MigrateInput> = async (input, context) => {
  const { signal, interrupts, typed } = context;
  const { json = false, quiet = false } = input;
  const guest = guestPlace(input);
  if (guest !== undefined) return await (await import("./shared/migrate-qemu.js")).run({ ...input, guest }, context);
  refuseOptions(typed, OF_GUESTS, "it is for a guest of QEMU, which --qmp or --libvirt names");
  let note = tell;
  interrupts.tellFirst(() => note("cancelling: the source goes on running; a second Ctrl-C forces"));
  // All that may be wrong with what was asked for is found out before anything is started.
  const asked = readScenario({ ...input, tracker: trackersOf(input) });
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
    remote === undefined ? await startLocalDestination(signal, grantsOf(description), input) : undefined;
  const destination = remote ?? (await readEndpoint(local?.ready ?? "", "client", input));
  const downtimeLimitMs = settings.downtimeLimit;
  const migration = newMigrationId();
  const header = migrationHeader(
    { id: migration, scenario, startedAt: new Date(), downtimeLimitMs },
    description,
    choices,
  );
  await using followed = await FollowedMigration.begin(header, { options: input, store, note: tell });
  note = (text) => followed.note(text);

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
    ...askingOperator(interrupts, { json, note, clear: () => followed.clear() }),
  });
  const conditions = conditionsUntilNow();
  followed.leave(report, conditions);
  printResult({ ...report, conditions }, { json, text: reportText });
  return exitCodeOf(report);
};

/** @throws UsageError `WRONG_OPTION` for a tracker that only devices of QEMU guests have */
function trackersOf({ tracker = {} }: MigrateInput): NonNullable<PolicyOptions["tracker"]> {
  const entries = Object.entries(tracker).map(([device, kind]) => {
    if (kind !== "messages") return [device, kind] as const;
    throw new UsageError(`'${device}' can't be tracked by messages: it is no device of a QEMU guest`, {
      code: "WRONG_OPTION",
      remedy: "in a scenario, give the device `dma: messages`",
    });
  });
  return Object.fromEntries(entries);
}

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
