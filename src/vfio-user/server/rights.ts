import { VFIO_PCI_REGION_INDEX } from "../../uapi/vfio.js";
import { DIRTMAP_COMMAND, DIRTMAP_PROTOCOL, VFIO_USER_COMMAND, vfio_user_region_access } from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import { refusal } from "./refusal.js";

/*
 * Which connection may send which command.
 */

/**
 * The device's one client proper, or one that controls: it may look at the device, track and migrate it while another
 * uses it, but neither use it nor give it memory and interrupts.
 */
export type SessionKind = "main" | "control";

const CONTROL_COMMANDS: ReadonlySet<number> = new Set([
  VFIO_USER_COMMAND.DEVICE_GET_INFO,
  VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO,
  VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO,
  VFIO_USER_COMMAND.DEVICE_RESET,
  VFIO_USER_COMMAND.DEVICE_FEATURE,
  VFIO_USER_COMMAND.MIG_DATA_READ,
  VFIO_USER_COMMAND.MIG_DATA_WRITE,
  ...Object.values(DIRTMAP_COMMAND),
]);

/** Commands of Dirtmap's own: for clients that have said which version of them they speak. */
const OWN_COMMANDS: ReadonlySet<number> = new Set(Object.values(DIRTMAP_COMMAND));

/** Of these, what the device's client can't ask for: it has its memory itself, and would be asked in the middle of asking. */
const CONTROL_ONLY: ReadonlySet<number> = new Set([
  DIRTMAP_COMMAND.WRITE_PATH,
  DIRTMAP_COMMAND.CLIENT_READ,
  DIRTMAP_COMMAND.CLIENT_WRITE,
  DIRTMAP_COMMAND.CLIENT_REWRITE,
]);

const NAMES: ReadonlyMap<number, string> = new Map([
  ...Object.entries(VFIO_USER_COMMAND).map(([name, number]): [number, string] => [number, `VFIO_USER_${name}`]),
  ...Object.entries(DIRTMAP_COMMAND).map(([name, number]): [number, string] => [number, `Dirtmap's ${name}`]),
]);

/** A command's name for messages. */
export function nameOf(command: number): string {
  return NAMES.get(command) ?? `command ${command}`;
}

/**
 * Checks that a connection may send a command; one that nobody knows is left to the caller.
 * @throws UapiError EPERM, EPROTONOSUPPORT
 */
export function checkMay(
  message: Message,
  { kind, speaksDirtmap }: { readonly kind: SessionKind; readonly speaksDirtmap: boolean },
): void {
  const { command } = message;
  if (kind === "control" && !mayControl(message) && NAMES.has(command)) {
    throw refusal("EPERM", nameOf(command), "use the device on a control connection", "use the device's own socket");
  }
  if (CONTROL_ONLY.has(command) && kind === "main") {
    throw refusal("EPERM", nameOf(command), "reach the client's memory for the client", "use a control connection");
  }
  if (OWN_COMMANDS.has(command) && !speaksDirtmap) {
    throw refusal(
      "EPROTONOSUPPORT",
      nameOf(command),
      "do it for a client that named no version of Dirtmap's own commands",
      `upgrade the client: it names version ${DIRTMAP_PROTOCOL} among its capabilities`,
    );
  }
}

/** Of the regions, only the configuration space, and only to be read: that does nothing to the device. */
function mayControl({ command, payload }: Message): boolean {
  if (command !== VFIO_USER_COMMAND.REGION_READ) return CONTROL_COMMANDS.has(command);
  if (payload.byteLength < vfio_user_region_access.size) return false;
  return vfio_user_region_access.decode(payload).region === VFIO_PCI_REGION_INDEX.CONFIG;
}
