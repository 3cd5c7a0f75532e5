import type { Worker } from "node:worker_threads";
import type { Operations, RpcClient } from "./rpc.js";
import { within } from "./within.js";

/** A thread that has not loaded by then never will. */
const LOAD_MS = 10_000;

/**
 * Ends a thread. One that is still loading its modules is waited for: Node leaves the files open that a terminated thread
 * was reading, for as long as the process runs.
 */
export async function endThread(worker: Worker, rpc: RpcClient<Operations>): Promise<void> {
  await within(rpc.loaded(), LOAD_MS, "the load of a thread").catch(() => undefined);
  await worker.terminate();
}
