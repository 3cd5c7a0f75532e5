import { closeSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import type { DeviceModel } from "../../devices/model.js";
import type { Feed } from "../../devices/servable.js";
import { DirtmapError, UsageError } from "../../errors.js";
import { serve } from "./serve.js";
import { ServedDevice } from "./served-device.js";
import type { ServerThreadData, ServerThreadMessage } from "./server.js";
import { LINES_OF_ALL, LINES_OF_DEVICE, limited } from "./server-log.js";

/**
 * What a server's thread does: makes the model, serves it until it is told to stop, and tells the main thread what
 * becomes of it. The thread blocks; what it posts is sent all the same.
 */
export async function runServerThread(
  create: (data: ServerThreadData) => {
    model: DeviceModel;
    turnEventLoop: boolean;
    /** Of a model that has been started. */
    feed?: () => Feed | undefined;
  },
): Promise<void> {
  if (parentPort === null) throw new Error("a server's thread is the entry of a worker");
  const port = parentPort;
  const say = (message: ServerThreadMessage) => port.postMessage(message);
  const write = (line: string) => say({ kind: "log", line });
  const log = limited(write, LINES_OF_ALL);
  const data = workerData as ServerThreadData;
  const { id, path, dma, incoming = false, busy, listener, controlListener, stop, connections } = data;
  let serving = false;
  try {
    const { model, turnEventLoop, feed } = create(data);
    const logDevice = limited(write, LINES_OF_DEVICE);
    // A guest that makes it fail and resets it, again and again, fills no disk either.
    const onFailure = (reason: string) => logDevice(`${id} has failed, until it is reset: ${reason}`);
    using device = await ServedDevice.start({ id, model, dma, incoming, socket: path, onFailure, log: logDevice });
    say({ kind: "ready", feed: feed?.() });
    serving = true;
    await serve({ device, listener, controlListener, stop, connections, busy, turnEventLoop, log });
  } catch (error) {
    if (!serving) for (const fd of [listener, controlListener]) closeSync(fd);
    if (!(error instanceof DirtmapError)) throw error;
    const { message, code, remedy } = error;
    say({ kind: "failed", error: { message, code, remedy, usage: error instanceof UsageError } });
  }
}
