import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import { Moved, RpcClient, serve } from "../../threads/rpc.js";
import type { DeviceOperations, HostOperations } from "./device-protocol.js";
import { HostedDevice } from "./hosted-device.js";

/*
 * The entry of a device thread: a few devices that take turns. Between slices the event loop runs: requests are
 * answered, datagrams and files are read.
 */

if (parentPort === null) throw new Error("device-thread.ts is the entry of a worker");

/** A slice of one device, in milliseconds: with a few devices, requests wait no longer than a few of these. */
const SLICE_MS = 0.5;

const host = new RpcClient<HostOperations>((workerData as { host: MessagePort }).host);
const devices = new Map<number, HostedDevice>();
let timer: NodeJS.Timeout | NodeJS.Immediate | undefined;
let sleeping = false;

function device(number: number): HostedDevice {
  const found = devices.get(number);
  if (found === undefined) throw new Error(`there is no device ${number} on this thread`);
  return found;
}

function turn(): void {
  timer = undefined;
  let next = Number.POSITIVE_INFINITY;
  for (const hosted of devices.values()) {
    if (!hosted.runnable) continue;
    if (hosted.dueAt <= performance.now()) hosted.run(SLICE_MS);
    if (hosted.runnable) next = Math.min(next, hosted.dueAt);
  }
  if (next === Number.POSITIVE_INFINITY) return;
  const wait = next - performance.now();
  sleeping = wait > 0;
  timer = sleeping ? setTimeout(turn, wait) : setImmediate(turn);
}

/** Something may have become runnable. */
function wake(): void {
  if (timer !== undefined && !sleeping) return;
  if (timer !== undefined) clearTimeout(timer as NodeJS.Timeout);
  sleeping = false;
  timer = setImmediate(turn);
}

const operations: DeviceOperations = {
  async create(posted) {
    const hosted = new HostedDevice(posted, host);
    try {
      await hosted.model.start(hosted);
      // A rehearsal, which changes nothing: a destination loads the state in the machine's downtime, and code that runs
      // for the first time takes several times as long.
      hosted.model.load(hosted.model.save());
    } catch (error) {
      hosted.model[Symbol.dispose]();
      throw error;
    }
    devices.set(posted.device, hosted);
  },
  remove({ device: number }) {
    device(number).model[Symbol.dispose]();
    devices.delete(number);
  },
  async setMode({ device: number, mode }) {
    await device(number).setMode(mode);
    wake();
  },
  save({ device: number }) {
    const state = device(number).model.save();
    return new Moved<Uint8Array>(state, [state.buffer as ArrayBuffer]);
  },
  load({ device: number, state }) {
    device(number).model.load(state);
  },
  async reset({ device: number }) {
    await device(number).reset();
    wake();
  },
  regionRead({ device: number, region, offset, bytes }) {
    const data = new Uint8Array(bytes);
    device(number).contained.regionRead(region, offset, data);
    return data;
  },
  regionWrite({ device: number, region, offset, data }) {
    const hosted = device(number);
    hosted.contained.regionWrite(region, offset, data);
    // It may have been a doorbell.
    hosted.dueAt = 0;
    wake();
  },
  setLog({ device: number, log }) {
    device(number).setLog(log);
  },
  setTracker({ device: number, tracker }) {
    device(number).setTracker(tracker);
  },
  dropPins({ device: number, page, pages, epoch }) {
    device(number).dropPins(page, pages, epoch);
  },
  facts({ device: number }) {
    return device(number).model.facts?.() ?? {};
  },
  counters({ device: number }) {
    return device(number).model.counters();
  },
  trail({ device: number }) {
    return device(number).model.trail?.() ?? null;
  },
};

serve(parentPort, operations);
