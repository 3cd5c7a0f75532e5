import { DirtmapError } from "../../../errors.js";
import type { ControlConnection } from "../../../migration/stream/control-connection.js";
import type { Listener } from "../../../migration/transport/listener.js";
import { formatMs } from "../../../observe/format.js";

/** The next source's control connection. @throws DirtmapError `NO_SOURCE` when the time is over; the signal's reason */
export async function nextSource(listener: Listener, signal: AbortSignal, waitMs?: number): Promise<ControlConnection> {
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
