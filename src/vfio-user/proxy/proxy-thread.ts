import { parentPort, workerData } from "node:worker_threads";
import { DirtmapError } from "../../errors.js";
import type { ServerThreadMessage } from "../server/server.js";
import { LINES_OF_ALL, LINES_OF_DEVICE, limited } from "../server/server-log.js";
import { ProxiedDevice } from "./proxied-device.js";
import type { ProxyThreadData } from "./proxy.js";
import { runProxy } from "./run-proxy.js";

/*
 * The entry of a proxy's thread.
 */

if (parentPort === null) throw new Error("a proxy's thread is the entry of a worker");
const port = parentPort;
const say = (message: ServerThreadMessage) => port.postMessage(message);
const write = (line: string) => say({ kind: "log", line });
const data = workerData as ProxyThreadData;
const { id, path, server, dma, incoming, listener, controlListener, stop, connections } = data;
const device = new ProxiedDevice({ id, socket: path, dma, incoming, log: limited(write, LINES_OF_DEVICE) });
try {
  await runProxy({
    device,
    path: server,
    listener,
    controlListener,
    stop,
    connections,
    ready: () => say({ kind: "ready", feed: undefined }),
    log: limited(write, LINES_OF_ALL),
  });
} catch (error) {
  if (!(error instanceof DirtmapError)) throw error;
  const { message, code, remedy } = error;
  say({ kind: "failed", error: { message, code, remedy, usage: false } });
} finally {
  device[Symbol.dispose]();
}
