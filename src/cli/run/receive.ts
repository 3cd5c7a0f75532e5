import { explain } from "../../errors.js";
import { receive } from "../../migration/destination.js";
import { acceptedSource } from "../../migration/network.js";
import { formatEndpoint } from "../../migration/transport/endpoint.js";
import { listen } from "../../migration/transport/listener.js";
import type { ReceiveInput } from "../commands/receive.js";
import { EXIT_CODES } from "../exit-codes.js";
import { readEndpoint } from "../input/endpoint.js";
import { grantedFolder, withGranted } from "../input/granted.js";
import { guestPlace } from "../input/guest-place.js";
import { refuseOptions } from "../input/which-go-together.js";
import { tidyUp } from "../kept/tidy.js";
import { tellEvent } from "../output.js";
import { type Run, untilAborted } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { type EmulatedMachine, openMachine } from "../sites/hosts.js";
import { nextSource } from "./shared/next-source.js";
import { tellReceived } from "./shared/tell-received.js";

export const run: Run<ReceiveInput> = async (input, context) => {
  const { signal, typed } = context;
  const { json = false, once = false } = input;
  const guest = guestPlace(input);
  if (guest !== undefined) return await (await import("./shared/receive-qemu.js")).run({ ...input, guest }, context);
  refuseOptions(
    typed,
    ["connect", "qemuAddress", "channels"],
    "it is for a QEMU that waits, which --qmp or --libvirt names",
  );
  const tell = tellEvent({ json });
  const { endpoint, credentials } = await readEndpoint(input.listen, "server", input);
  await tidyUp(input.journal);
  const grants = {
    files: input.file ?? {},
    sockets: input.socket ?? {},
    folder: input.sharedFolder === undefined ? undefined : grantedFolder(input.sharedFolder),
  };
  const onRefused = (error: unknown) =>
    tell({ event: "refused", message: explain(error) }, `turned away: ${explain(error)}`);
  await using listener = await listen({ endpoint, credentials, onRefused });
  const address = formatEndpoint(listener.endpoint);
  tell({ event: "listening", address }, `listening on ${address}`);
  for (;;) {
    const control = await nextSource(listener, signal, input.wait);
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
      ...(input.journal === undefined ? {} : { journalDirectory: input.journal }),
    });
    const { outcome, migration } = result;
    tellReceived(result, tell, "machine");
    if (!("machine" in result)) {
      // Something that never said what it brings was no migration.
      if (once && migration !== null) return EXIT_CODES.failed.code;
      continue;
    }
    await using _machine = result.machine;
    if (outcome === "run-failed") return EXIT_CODES.failed.code;
    if (once) return EXIT_CODES.done.code;
    listener.occupy(`the machine of migration ${migration}, which runs here`);
    await untilAborted(signal);
    return EXIT_CODES.done.code;
  }
};
