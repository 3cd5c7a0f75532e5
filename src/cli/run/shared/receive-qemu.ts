import { explain, UsageError } from "../../../errors.js";
import { receiveBy } from "../../../migration/destination.js";
import { formatEndpoint } from "../../../migration/transport/endpoint.js";
import { listen } from "../../../migration/transport/listener.js";
import { DestinationGuest } from "../../../qemu/destination-guest.js";
import { QemuDestination } from "../../../qemu/destination-memory.js";
import type { MonitorPlace } from "../../../qemu/qmp/monitor.js";
import { openQemu } from "../../../qemu/qmp/open-qemu.js";
import { checkStreamSecurity } from "../../../qemu/stream-address.js";
import type { ReceiveInput } from "../../commands/receive.js";
import { EXIT_CODES } from "../../exit-codes.js";
import { readEndpoint } from "../../input/endpoint.js";
import { refuseOptions } from "../../input/which-go-together.js";
import { tidyUp } from "../../kept/tidy.js";
import { note, tellEvent } from "../../output.js";
import type { RunContext } from "../../run-command.js";
import { nextSource } from "./next-source.js";
import { tellReceived } from "./tell-received.js";

/** `dirtmap receive --qmp`, or `--libvirt`: takes one guest into a QEMU that waits for it. */
export async function run(
  input: ReceiveInput & { readonly guest: MonitorPlace },
  { signal, typed }: RunContext,
): Promise<number> {
  const { json = false, qemuAddress: address } = input;
  const tell = tellEvent({ json });
  refuseOptions(typed, ["file", "sharedFolder"], "it is for a scenario's machine, and --qmp or --libvirt names a QEMU");
  if (address === undefined) {
    throw new UsageError("QEMU's own stream has no address", {
      code: "BAD_OPTION",
      remedy: "give --qemu-address tcp:HOST:PORT or unix:PATH, where this side's QEMU is to listen",
    });
  }
  const { endpoint, credentials } = await readEndpoint(input.listen, "server", input);
  await tidyUp(input.journal);
  await using qemu = await openQemu(input.guest);
  await checkStreamSecurity(qemu, address, input.insecure === true);
  const options = { ...(input.socket === undefined ? {} : { sockets: input.socket }), warn: note };
  // What can't be is found out before a source comes.
  await (await DestinationGuest.open(qemu, options))[Symbol.asyncDispose]();
  const onRefused = (error: unknown) =>
    tell({ event: "refused", message: explain(error) }, `turned away: ${explain(error)}`);
  await using listener = await listen({ endpoint, credentials, onRefused });
  const listening = formatEndpoint(listener.endpoint);
  tell({ event: "listening", address: listening }, `listening on ${listening}`);
  for (;;) {
    const control = await nextSource(listener, signal, input.wait);
    const settings = {
      address,
      warn: note,
      ...(input.channels === undefined ? {} : { multifdChannels: input.channels }),
    };
    const result = await receiveBy(
      (context) => new QemuDestination(() => DestinationGuest.open(qemu, options), settings, context.signal),
      {
        from: control.peer,
        control,
        announce: (migration) => listener.describe(`migration ${migration} from ${control.peer}`),
      },
      { signal, ...(input.journal === undefined ? {} : { journalDirectory: input.journal }) },
    );
    const { outcome, migration } = result;
    tellReceived(result, tell, "guest");
    if (!("machine" in result)) {
      // A QEMU that has begun to take a guest can't begin anew.
      if (outcome === "discarded" || (input.once === true && migration !== null)) return EXIT_CODES.failed.code;
      continue;
    }
    await using _guest = result.machine;
    if (outcome === "run-failed") return EXIT_CODES.failed.code;
    return EXIT_CODES.done.code;
  }
}
