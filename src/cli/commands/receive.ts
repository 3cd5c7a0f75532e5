import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { MAX_CHANNELS } from "../../scenario/choices.js";
import { parseDuration } from "../../units.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addJournalOption, type JournalOption } from "../input/options/places.js";
import { addQemuOptions, type QemuOptions } from "../input/options/qemu.js";
import { addTlsOptions, type TlsOptions } from "../input/options/tls.js";
import { argument, nonEmpty, perDevice, wholeNumber } from "../input/options/values.js";
import { runBy } from "../run-command.js";

export interface ReceiveInput extends TlsOptions, JournalOption, QemuOptions {
  readonly channels?: number;
  readonly listen: string;
  readonly once?: boolean;
  readonly wait?: number;
  readonly file?: Readonly<Record<string, string>>;
  readonly socket?: Readonly<Record<string, string>>;
  readonly sharedFolder?: string;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap receive
  dirtmap receive --listen tls://0.0.0.0:7700 --tls-folder certs
  dirtmap receive --listen tcp://127.0.0.1:0 --once --json
  dirtmap receive --file disk0=/srv/vm7/disk.img --socket vf0=/run/vm7/vf0.sock
  dirtmap receive --shared-folder /mnt/shared
  dirtmap receive --qmp dst.qmp --qemu-address tcp:127.0.0.1:4444 --once
  dirtmap receive --libvirt vm7 --qemu-address tcp:0.0.0.0:4444 --listen tls://0.0.0.0:7700 --tls-folder certs

It opens nothing because a source names it. A disk or trace is the file that --file gives for its device. With
--shared-folder, it may also be a file that the source names and that lies in that folder, links followed: any source that
can connect can then use every file in it. A device in another process is taken over at the socket that --socket gives.
The source's devices are compared with the destination's before anything moves; another machine is refused.

A machine that arrives runs here until Ctrl-C, or with --once until its workload was checked. A source that is turned away,
or gives up, changes nothing, and the next one may come. While a machine arrives or runs here, other sources are told so.
With --json each event is a line of JSON.
`;

/** `dirtmap receive`: the destination. */
export function declareReceive(program: Command): Command {
  const command = program
    .command("receive")
    .description("wait for a machine, and run it")
    .option(
      "-l, --listen <address>",
      "listen on tls://HOST:PORT or tcp://HOST:PORT; port 0: the system chooses",
      DEFAULTS.destination,
    );
  addQemuOptions(command, "that waits for a guest, started with -S -incoming defer,").option(
    "--channels <number>",
    "take QEMU's stream over this many channels of multifd, as the source has it (default: no multifd)",
    wholeNumber(1, MAX_CHANNELS),
  );
  addJournalOption(
    addTlsOptions(command)
      .option("--once", "end after the first migration, however it went")
      .option("--wait <duration>", "end if no source comes within this time", argument(parseDuration)),
  )
    .option("--file <dev=file>", "open this file as a device's disk or trace", perDevice(nonEmpty))
    .option("--socket <dev=path>", "take a device over at this vfio-user socket", perDevice(nonEmpty))
    .option("--shared-folder <folder>", "open files that the source names, if they lie in this folder")
    .option("--json", "print events as lines of JSON")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<ReceiveInput>(command, () => import("../run/receive.js"));
}
