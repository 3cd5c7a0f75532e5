import { join } from "node:path";
import { UsageError } from "../../../errors.js";
import { newMigrationId } from "../../../migration/journal.js";
import { defaultJournalDirectory } from "../../../migration/journal-directory.js";
import { sourceTransport } from "../../../migration/network.js";
import type { MigrationReport } from "../../../migration/report.js";
import { migrateBy } from "../../../migration/source.js";
import { reportedTracking, trackerFor } from "../../../qemu/guest-tracking.js";
import { checkNotLeft } from "../../../qemu/left-guest.js";
import { effectiveTuning } from "../../../qemu/migration-settings.js";
import type { MonitorPlace } from "../../../qemu/qmp/monitor.js";
import { openQemu } from "../../../qemu/qmp/open-qemu.js";
import { SourceGuest } from "../../../qemu/source-guest.js";
import { QemuMover } from "../../../qemu/source-mover.js";
import { checkStreamSecurity } from "../../../qemu/stream-address.js";
import { temporaryFolder } from "../../../sys/temporary-folder.js";
import { GUEST_TRACKERS, type MigrateInput } from "../../commands/migrate.js";
import { EXIT_CODES, exitCodeOf } from "../../exit-codes.js";
import { readEndpoint } from "../../input/endpoint.js";
import { destinationPlace } from "../../input/guest-place.js";
import { checkDevices } from "../../input/policy.js";
import { refuseOptions } from "../../input/which-go-together.js";
import { FollowedMigration } from "../../kept/followed-migration.js";
import { guestHeader } from "../../kept/record-run.js";
import { watchGuestConditions } from "../../kept/run-conditions.js";
import { storeOrNone } from "../../kept/store.js";
import { tidyUp } from "../../kept/tidy.js";
import { printResult, note as tell } from "../../output.js";
import type { RunContext } from "../../run-command.js";
import { startLocalDestination } from "../../sites/local-destination.js";
import { reportText } from "../../text/report-text.js";
import { askingOperator } from "./asking-operator.js";

/** Options about a scenario's machine. */
const OF_SCENARIOS = [
  ...["scenario", "memory", "seed", "p2p", "policy", "unmeasured", "granule", "domain", "untracked", "design"],
  ...["verify", "runAfter", "predict", "maxRounds"],
];

/** `dirtmap migrate --qmp`, or `--libvirt`: moves the guest of a QEMU, with its vfio-user devices. */
export async function run(
  input: MigrateInput & { readonly guest: MonitorPlace },
  { signal, interrupts, typed }: RunContext,
): Promise<number> {
  const { json = false, quiet = false } = input;
  refuseOptions(typed, OF_SCENARIOS, "it is for a scenario's machine, and --qmp or --libvirt names a guest of QEMU");
  let note = tell;
  interrupts.tellFirst(() => note("cancelling: the guest goes on running at the source; a second Ctrl-C forces"));
  const trackers = trackersOf(input);
  const store = storeOrNone(input, note);
  const remote = input.to === undefined ? undefined : await readEndpoint(input.to, "client", input);
  const to = destinationPlace(input);
  using place = placeOf(input, to);
  await tidyUp(input.journal);

  await using qemu = await openQemu(input.guest);
  checkNotLeft(qemu, input.journal ?? defaultJournalDirectory());
  await checkStreamSecurity(qemu, place.address, input.insecure === true);
  await using guest = await SourceGuest.open(qemu, input.socket === undefined ? {} : { sockets: input.socket });
  checkDevices(
    guest.devices.map(({ id }) => id),
    Object.keys(trackers),
  );
  if (!quiet) for (const { id, model } of guest.devices) note(`${id} (${model}) moves with the guest`);
  await using local =
    to === undefined
      ? undefined
      : await startLocalDestination(
          signal,
          { files: {}, sockets: {} },
          {
            journal: input.journal,
            qemu: { place: to, address: place.address, tuning: tuningArguments(input) },
          },
        );
  const destination = remote ?? (await readEndpoint(local?.ready ?? "", "client", input));

  const migration = newMigrationId();
  const applied = await effectiveTuning(qemu, tuning(input));
  const memoryBytes = await qemu.memoryBytes();
  const header = guestHeader(
    { id: migration, startedAt: new Date(), downtimeLimitMs: applied.downtimeLimitMs },
    memoryBytes,
    guest.devices.map((device) => {
      const { id, model } = device;
      return { id, model, ...reportedTracking(trackerFor(device, trackers)) };
    }),
  );
  await using followed = await FollowedMigration.begin(header, { options: input, store, note: tell });
  note = (text) => followed.note(text);
  const conditionsUntilNow = watchGuestConditions(
    {
      memoryBytes,
      hosts: ["qemu", "vfio-user"],
      transport: { scheme: destination.endpoint.scheme, local: remote === undefined },
    },
    {
      ...applied,
      trackers: Object.fromEntries(guest.devices.map((device) => [device.id, trackerFor(device, trackers)])),
    },
  );
  const mover = new QemuMover(guest, {
    address: place.address,
    trackers,
    keepSource: input.keepSource === true,
    ...tuning(input),
  });
  const report = await migrateBy(mover, guest, sourceTransport(destination), {
    signal,
    migration,
    runAfterMs: 0,
    ...(input.journal === undefined ? {} : { journalDirectory: input.journal }),
    ...(input.decide === undefined ? {} : { decideMs: input.decide }),
    ...askingOperator(interrupts, { json, note, outlives: true, clear: () => followed.clear() }),
  });
  const conditions = conditionsUntilNow();
  followed.leave(report, conditions);
  printResult({ ...report, conditions }, { json, text: (safe: MigrationReport) => reportText(safe) });
  // The two memories are QEMU's, and never compared: `verified` stays null.
  const isDone = report.result === "completed" && report.error === undefined;
  return isDone ? EXIT_CODES.done.code : exitCodeOf(report);
}

/** Where QEMU's stream goes. @throws UsageError `BAD_OPTION` */
function placeOf(
  { to, qemuAddress }: MigrateInput,
  here: MonitorPlace | undefined,
): { readonly address: string } & Disposable {
  const refuse = (what: string, remedy: string) => new UsageError(what, { code: "BAD_OPTION", remedy });
  if ((to === undefined) === (here === undefined)) {
    throw refuse(
      to === undefined
        ? "a guest of QEMU moves to no place by itself"
        : "--to and a QEMU on this machine are two destinations",
      "give --to ADDRESS of a `dirtmap receive --qmp` or `--libvirt`, or --qmp-to PATH or --libvirt-to DOMAIN of a QEMU on this machine",
    );
  }
  if (qemuAddress !== undefined) return { address: qemuAddress, [Symbol.dispose]: () => {} };
  if (to !== undefined)
    throw refuse("QEMU's own stream has no address", "give --qemu-address, as the destination has it");
  const folder = temporaryFolder("qemu");
  return { address: `unix:${join(folder.path, "stream")}`, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

function trackersOf({ tracker = {} }: MigrateInput): Readonly<Record<string, (typeof GUEST_TRACKERS)[number]>> {
  const entries = Object.entries(tracker).map(([device, kind]) => {
    const known = GUEST_TRACKERS.find((each) => each === kind);
    if (known !== undefined) return [device, known] as const;
    throw new UsageError(`'${device}' of a QEMU guest can't be tracked by ${kind}`, {
      code: "WRONG_OPTION",
      remedy: `give one of: ${GUEST_TRACKERS.join(", ")}`,
    });
  });
  return Object.fromEntries(entries);
}

function tuning({ channels, downtimeLimit, bandwidth }: MigrateInput) {
  return {
    ...(channels === undefined ? {} : { multifdChannels: channels }),
    ...(downtimeLimit === undefined ? {} : { downtimeLimitMs: downtimeLimit }),
    ...(bandwidth === undefined || !Number.isFinite(bandwidth) ? {} : { bandwidth }),
  };
}

/** What of it the destination must be told, too. */
function tuningArguments({ channels }: MigrateInput): string[] {
  return channels === undefined ? [] : ["--channels", String(channels)];
}
