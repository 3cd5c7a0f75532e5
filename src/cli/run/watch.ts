import { UsageError } from "../../errors.js";
import { type MigrationEvent, publish } from "../../migration/events.js";
import { newMigrationId } from "../../migration/journal.js";
import type { MigrationReport } from "../../migration/report.js";
import type { RunConditions } from "../../observe/conditions.js";
import { effectiveTuning } from "../../qemu/migration-settings.js";
import { openQemu } from "../../qemu/qmp/open-qemu.js";
import type { GuestIdentity } from "../../qemu/watch/guest-identity.js";
import { STALL_LIMITS } from "../../qemu/watch/stall-rule.js";
import { watchGuest } from "../../qemu/watch/watch-guest.js";
import type { WatchInput } from "../commands/watch.js";
import { EXIT_CODES, exitCodeOfWatched } from "../exit-codes.js";
import { guestPlace } from "../input/guest-place.js";
import { FollowedMigration } from "../kept/followed-migration.js";
import { guestHeader } from "../kept/record-run.js";
import { watchGuestConditions } from "../kept/run-conditions.js";
import { storeOrNone } from "../kept/store.js";
import { printResult, note as tell } from "../output.js";
import type { Run } from "../run-command.js";
import { reportText } from "../text/report-text.js";

/** QEMU is asked this often, besides after each of its events. */
const INTERVAL_MS = 250;

export const run: Run<WatchInput> = async (input, { signal, interrupts }) => {
  const { json = false, quiet = false } = input;
  interrupts.tellFirst(() => note("ending the watch: the migration goes on; a second Ctrl-C forces"));
  let note = tell;
  const place = guestPlace(input);
  if (place === undefined) {
    throw new UsageError("no QEMU was named", {
      code: "BAD_OPTION",
      remedy: "give --qmp PATH, or --libvirt DOMAIN for a guest that libvirt has started",
    });
  }
  const store = storeOrNone(input, note);
  await using qemu = await openQemu(place);
  const migration = newMigrationId();
  let followed: FollowedMigration | undefined;
  // There is one once a migration has begun.
  await using _followed = { [Symbol.asyncDispose]: async () => followed?.[Symbol.asyncDispose]() };
  let conditions: (() => RunConditions) | undefined;
  const begin = async ({ memoryBytes, devices }: GuestIdentity) => {
    const tuning = await effectiveTuning(qemu, {});
    const header = guestHeader(
      { id: migration, startedAt: new Date(), downtimeLimitMs: tuning.downtimeLimitMs },
      memoryBytes,
      devices.map(({ id, model }) => ({ id, model, tracker: "vmm", granule: null })),
    );
    followed = await FollowedMigration.begin(header, { options: { ...input, watched: true }, store, note: tell });
    note = (text) => followed?.note(text);
    conditions = watchGuestConditions(
      { memoryBytes, hosts: ["qemu"], transport: { scheme: "qemu", local: false } },
      { ...tuning, trackers: Object.fromEntries(devices.map(({ id }) => [id, "vmm"])) },
    );
  };
  const report = await watchGuest(qemu, {
    limits: STALL_LIMITS,
    intervalMs: INTERVAL_MS,
    migration,
    signal,
    onWaiting: ({ name, devices }) => {
      const which = devices.map(({ id }) => id).join(", ") || "no VFIO devices";
      if (!quiet) note(`waiting for a migration of ${name ?? "the guest"} (${which})`);
    },
    onBegin: begin,
    tell: (event) => {
      publish(event);
      if (json) printResult<MigrationEvent>(event, { json, text: () => "" });
    },
  });
  if (report === null || followed === undefined || conditions === undefined) return EXIT_CODES.cancelled.code;
  const ran = conditions();
  followed.leave(report, ran);
  printResult({ ...report, conditions: ran }, { json, text: (safe: MigrationReport) => reportText(safe) });
  return exitCodeOfWatched(report);
};
