import type { Command } from "commander";
import { exitCodesHelp } from "../exit-codes.js";
import { addReportOption, addStoreOption, type ReportOption, type StoreOption } from "../input/options/places.js";
import { addGuestOptions, type GuestOptions } from "../input/options/qemu.js";
import { runBy } from "../run-command.js";

export interface WatchInput extends GuestOptions, StoreOption, ReportOption {
  readonly feed: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const NOTES = `
Examples:
  dirtmap watch --qmp vm7.qmp
  dirtmap watch --libvirt vm7 --connect qemu:///system
  dirtmap watch --qmp vm7.qmp --json --report vm7.html

It waits for a migration that somebody else starts, or joins one that is under way, and watches it to its end. QEMU is only
asked: nothing of it is set. Give the QEMU that the guest runs in, not the one that waits for it. A QMP socket has one client:
with a monitor that somebody holds, give QEMU a second one. docs/watching.md says what is shown, and when a migration counts as
stalled.
`;

const EXIT_MEANS = {
  done: "the migration has completed",
  failed: "the migration has failed, or was cancelled",
  usage: "wrong usage; nothing was watched",
  indeterminate: "QEMU was lost sight of before it told how the migration ended",
  cancelled: "the watch was ended (Ctrl-C); the migration goes on",
};

/** `dirtmap watch`: somebody else's migration of a QEMU guest. */
export function declareWatch(program: Command): Command {
  const command = program
    .command("watch")
    .description("watch a QEMU migration that somebody else makes, and tell why it does not end");
  addReportOption(addStoreOption(addGuestOptions(command, "whose migration is watched"), { optional: true }))
    .option(
      "--no-feed",
      "publish no live feed: `dirtmap serve` and `dirtmap top` don't see the migration while it runs",
    )
    .option("--json", "print events as JSON, a line each, and the report as the last line")
    .option("-q, --quiet", "show nothing while it runs")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp(EXIT_MEANS)}`);
  return runBy<WatchInput>(command, () => import("../run/watch.js"));
}
