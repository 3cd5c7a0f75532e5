import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { DirtmapError, explain } from "../../errors.js";
import type { ControlConnection } from "../../migration/stream/control-connection.js";
import type { Listener } from "../../migration/transport/listener.js";
import { formatMs } from "../../observe/format.js";
import { parseDuration } from "../../units.js";
import { EXIT_CODES, exitCodesHelp } from "../exit-codes.js";
import { addTlsOptions, readEndpoint, type TlsOptions } from "../input/endpoint.js";
import { argument, nonEmpty, perDevice } from "../input/options.js";
import { note, printResult, runCommand } from "../output.js";
import type { EmulatedMachine } from "../sites/hosts.js";

interface ReceiveOptions extends TlsOptions {
  readonly listen: string;
  readonly once?: boolean;
  readonly wait?: number;
  readonly journal?: string;
  readonly file?: Readonly<Record<string, string>>;
  readonly socket?: Readonly<Record<string, string>>;
  readonly files?: string;
  readonly json?: boolean;
}

const EXAMPLES = `
Examples:
  dirtmap receive
  dirtmap receive --listen tls://0.0.0.0:7700 --tls-folder certs
  dirtmap receive --listen tcp://127.0.0.1:0 --once --json
  dirtmap receive --file disk0=/srv/vm7/disk.img --socket vf0=/run/vm7/vf0.sock
  dirtmap receive --files /mnt/shared

It opens nothing because a source names it. Disks and traces are the files that --file gives by device, or, with --files,
those of the source's own names that lie in that folder, links followed: any source that may connect has all of it. A device
in another process is taken over at the socket that --socket gives. What the source's devices are is compared with the
destination's before anything moves; another machine is refused.

A machine that arrives runs here until Ctrl-C, or with --once until its workload was checked. A source that is turned
away, or gives up, changes nothing: the next one may come. Sources that come meanwhile are told at once what keeps this
destination busy. With --json each event is a line of JSON.
`;

/** `dirtmap receive`: the destination. */
export function addReceive(program: Command): void {
  const command = program
    .command("receive")
    .description("Waits for a machine, and runs it")
    .option(
      "-l, --listen <address>",
      "tls://HOST:PORT or tcp://HOST:PORT; port 0: the system chooses",
      DEFAULTS.destination,
    );
  addTlsOptions(command)
    .option("--once", "end after the first migration, however it went")
    .option("--wait <duration>", "end where no source has come in this time", argument(parseDuration))
    .option("--journal <folder>", "where to keep the record of who may run the machine")
    .option("--file <dev=file>", "open this file as a device's disk or trace", perDevice(nonEmpty))
    .option("--socket <dev=path>", "take a device over at this vfio-user socket", perDevice(nonEmpty))
    .option("--files <folder>", "open files by the names that the source has for them, if they lie in this folder")
    .option("--json", "print events as lines of JSON")
    .addHelpText("after", `${EXAMPLES}\n${exitCodesHelp()}`)
    .action(run);
}

async function run(options: ReceiveOptions): Promise<void> {
  const { json = false, once = false } = options;
  const tell = (event: { event: string } & Record<string, unknown>, text: string) => {
    if (json) printResult(event, { json, text: () => text });
    else note(text);
  };
  await runCommand({ json }, async (signal) => {
    const { endpoint, credentials } = await readEndpoint(options.listen, "server", options);
    await (await import("../kept/tidy.js")).tidyUp(options.journal);
    const [
      { listen },
      { receive },
      { acceptedSource },
      { openMachine },
      { grantedFolder, withGranted },
      { formatEndpoint },
      { checkMemory },
    ] = await Promise.all([
      import("../../migration/transport/listener.js"),
      import("../../migration/destination.js"),
      import("../../migration/network.js"),
      import("../sites/hosts.js"),
      import("../input/granted.js"),
      import("../../migration/transport/endpoint.js"),
      import("../input/settings.js"),
    ]);
    const grants = {
      files: options.file ?? {},
      sockets: options.socket ?? {},
      folder: options.files === undefined ? undefined : grantedFolder(options.files),
    };
    const onRefused = (error: unknown) =>
      tell({ event: "refused", message: explain(error) }, `turned away: ${explain(error)}`);
    await using listener = await listen({
      endpoint,
      credentials,
      onRefused,
    });
    const address = formatEndpoint(listener.endpoint);
    tell({ event: "listening", address }, `listening on ${address}`);
    for (;;) {
      const control = await nextSource(listener, signal, options.wait);
      let machine: EmulatedMachine | undefined;
      const result = await receive({
        source: acceptedSource(listener, control, onRefused),
        createMachine: async (description, named) => {
          checkMemory(description, "destination");
          const granted = withGranted(description, named, grants);
          machine = await openMachine(granted, { paused: true, side: "destination" });
          return machine;
        },
        audit: async () => (await machine?.audit()) ?? { stamps: null, written: {} },
        signal,
        ...(options.journal === undefined ? {} : { journalDirectory: options.journal }),
      });
      const { outcome: event, migration } = result;
      if (!("machine" in result)) {
        tell({ event, migration, message: explain(result.error) }, `${event}: ${explain(result.error)}`);
        // Something that never said what it brings was no migration.
        if (once && migration !== null) return EXIT_CODES.failed.code;
        continue;
      }
      await using _machine = result.machine;
      if (result.outcome === "run-failed") {
        tell({ event, migration, message: explain(result.error) }, `it does not run: ${explain(result.error)}`);
        return EXIT_CODES.failed.code;
      }
      tell({ event, migration }, `migration ${migration}: the machine runs here`);
      if (once) return EXIT_CODES.done.code;
      listener.occupy(`the machine of migration ${migration}, which runs here`);
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      return EXIT_CODES.done.code;
    }
  });
}

/** @throws DirtmapError `NO_SOURCE` when the time is over; the signal's reason */
async function nextSource(listener: Listener, signal: AbortSignal, waitMs?: number): Promise<ControlConnection> {
  if (waitMs === undefined) return await listener.acceptControl(signal);
  const late = new DirtmapError(`no source came within ${formatMs(waitMs)}`, { code: "NO_SOURCE" });
  const over = new AbortController();
  const timer = setTimeout(() => over.abort(late), waitMs);
  try {
    return await listener.acceptControl(AbortSignal.any([signal, over.signal]));
  } finally {
    clearTimeout(timer);
  }
}
