import { closeSync, unlinkSync } from "node:fs";
import type { DeviceModel } from "../../devices/model.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import { accept, listenAt } from "../../sys/unix-socket.js";
import { VFIO_USER_DEFAULT_DATA_XFER } from "../../uapi/vfio-user.js";
import { MessageSocket } from "../message-socket.js";
import { ServedDevice } from "./served-device.js";
import { Session } from "./session.js";

/** A wait that nothing bounds is looked at again after this long. */
const MAX_WAIT_MS = 1000;

/** How long a device works before the sockets are looked at again. */
const SLICE_MS = 1;

/**
 * Serves a device at a path until `stop` is readable. Runs on a thread of its own, which it blocks: it waits for sockets
 * and the device together, in poll.
 */
export async function serveAt(
  path: string,
  { id, model, stop }: { id: string; model: DeviceModel; stop: number },
): Promise<void> {
  const listener = listenAt(path);
  using device = await ServedDevice.start(id, model);
  let client: { readonly socket: MessageSocket; readonly session: Session } | undefined;
  try {
    for (;;) {
      const due = device.run(SLICE_MS) ?? MAX_WAIT_MS;
      const set = new PollSet([
        { fd: stop, events: POLLIN },
        { fd: client === undefined ? listener : -1, events: POLLIN },
        { fd: client?.socket.fd ?? -1, events: POLLIN | (client?.socket.unsent ? POLLOUT : 0) },
      ]);
      set.wait(Math.min(due, MAX_WAIT_MS));
      if (set.events(0) !== 0) return;
      if (client === undefined) {
        const socket = accept(listener);
        if (socket === undefined) continue;
        const messages = new MessageSocket(socket, VFIO_USER_DEFAULT_DATA_XFER + 4096);
        client = { socket: messages, session: new Session(messages, device) };
      } else if (set.events(2) !== 0) {
        client.socket.flush();
        const alive = await client.session.serve().catch(() => false);
        if (alive) continue;
        client.socket[Symbol.dispose]();
        client = undefined;
      }
    }
  } finally {
    client?.socket[Symbol.dispose]();
    closeSync(listener);
    unlinkSync(path);
  }
}
