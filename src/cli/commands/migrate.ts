import { type Command, Option } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { DEVICE_TRACKERS } from "../../scenario/choices.js";
import { parseDuration, parseLimit, writeDuration } from "../../units.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addMachineOptions, type MachineOptions } from "../input/options/machine.js";
import { addMigrationOptions, type MigrationOptions } from "../input/options/migration.js";
import {
  addJournalOption,
  addReportOption,
  addStoreOption,
  type JournalOption,
  type ReportOption,
  type StoreOption,
} from "../input/options/places.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options/policy.js";
import { addQemuOptions, type QemuOptions } from "../input/options/qemu.js";
import { addTlsOptions, type TlsOptions } from "../input/options/tls.js";
import { argument, durationWithin, nonEmpty, orElse, orScenario, perDevice } from "../input/options/values.js";
import { DURATION_MS } from "../input/options/watch.js";
import { runBy } from "../run-command.js";

/** Trackers that a device of a QEMU guest can have. */
export const GUEST_TRACKERS = ["messages", "device"] as const;

export interface MigrateInput
  extends MachineOptions,
    Omit<PolicyOptions, "tracker">,
    QemuOptions,
    MigrationOptions,
    TlsOptions,
    StoreOption,
    JournalOption,
    ReportOption {
  readonly to?: string;
  readonly qmpTo?: string;
  readonly libvirtTo?: string;
  readonly keepSource?: boolean;
  readonly socket?: Readonly<Record<string, string>>;
  readonly tracker?: Readonly<Record<string, (typeof DEVICE_TRACKERS)[number] | (typeof GUEST_TRACKERS)[number]>>;
  readonly verify: "after" | "before";
  readonly runAfter?: number;
  readonly decide?: number;
  readonly feed: boolean;
  /** Milliseconds; true: the default. */
  readonly predict?: number | true;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const NOTES = `
Examples:
  dirtmap migrate
  dirtmap migrate --scenario nic-pair --memory 1G --downtime-limit 20ms
  dirtmap migrate --tracker vf0=iommu --granule vf0=4K --domain shared
  dirtmap migrate --scenario case-c --untracked suspend --json
  dirtmap migrate --design type1 --downtime-limit 5s
  dirtmap migrate --to tls://dst.example.com:7700 --tls-folder certs --bandwidth 10Gbit --channels 4

  dirtmap migrate --qmp src.qmp --qmp-to dst.qmp
  dirtmap migrate --qmp src.qmp --to tls://dst:7700 --tls-folder certs --qemu-address tcp:dst:4444
  dirtmap migrate --libvirt vm7 --connect qemu:///system --to tls://dst:7700 --tls-folder certs --qemu-address tcp:dst:4444

With --qmp or --libvirt, the guest of a QEMU is moved together with its vfio-user devices, which \`dirtmap device\` serves; docs/qemu.md says
what both sides need. QEMU's own migration moves its memory.

There is no --host linux here: a guest on this machine's devices needs a VMM, and Dirtmap is none. A VMM that is written
with Dirtmap's library (its Host, trackers and migrate()) migrates such a guest; \`dirtmap plan --host linux\` prints the
options with which QEMU does.

Ctrl-C cancels, and the source goes on running; a second Ctrl-C forces. Without --to, the destination is a second process
on this machine.

If the destination does not confirm that it runs, the source stays paused and waits for \`dirtmap resume\` or
\`dirtmap abort\`. It prints both commands on standard error, with --json as a line {"event":"undecided", …}. The first
Ctrl-C does not end that wait. A second one does, and so does the end of --decide: then the source's memory is gone.
`;

/** `dirtmap migrate`: runs a scenario's machine and moves it. */
export function declareMigrate(program: Command): Command {
  const command = program.command("migrate").description("run a scenario's machine and live-migrate it");
  addMachineOptions(command).option(
    "--to <address>",
    "migrate to the `dirtmap receive` at tls://HOST:PORT or tcp://HOST:PORT (default: a second process on this machine)",
  );
  addQemuOptions(command, "whose guest is moved, instead of a scenario's machine,")
    .option("--qmp-to <path>", "move it to the QEMU at this QMP socket of the same machine, instead of --to")
    .addOption(
      new Option(
        "--libvirt-to <domain>",
        "move it to this domain of libvirt's on the same machine, instead of --to",
      ).argParser(argument(nonEmpty)),
    )
    .option("--socket <dev=path>", "reach a device of it at this vfio-user socket", perDevice(nonEmpty))
    .option(
      "--keep-source",
      "leave the source's QEMU paused once the guest runs at the destination (default: it quits)",
    );
  const policy = addPolicyOptions(command, { trackers: [...new Set([...DEVICE_TRACKERS, ...GUEST_TRACKERS])] });
  addJournalOption(addStoreOption(addTlsOptions(addMigrationOptions(policy)), { optional: true }))
    .addOption(
      new Option("--verify <when>", "compare the two memories after the destination runs, or before it may")
        .choices(["after", "before"])
        .default(DEFAULTS.verify, DEFAULTS.verify),
    )
    .option(
      "--run-after <duration>",
      `let the workload run on at the destination for this long before it is checked${orScenario(writeDuration(DEFAULTS.runAfterMs))}`,
      argument(parseDuration),
    )
    .option(
      "--decide <duration>",
      `give up, and lose the source's memory, if a handover is neither confirmed nor decided within this time${orElse(writeDuration(DEFAULTS.decideMs))}`,
      argument(parseLimit),
    )
    .option(
      "--predict [duration]",
      `watch the machine first for this long, and predict the migration; the report has both${orElse(writeDuration(DEFAULTS.observeMs))}`,
      durationWithin(DURATION_MS),
    );
  addReportOption(command)
    .option(
      "--no-feed",
      "publish no live feed: `dirtmap serve` and `dirtmap top` don't see the migration while it runs",
    )
    .option("--json", "print the report as JSON")
    .option("-q, --quiet", "show nothing while it runs")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<MigrateInput>(command, () => import("../run/migrate.js"));
}
