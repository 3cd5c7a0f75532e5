import { parentPort, workerData } from "node:worker_threads";
import { SharedLog } from "../../bitmap/shared-log.js";
import { BufferRing } from "../../devices/buffers.js";
import { clockMonotonic } from "../../devices/clock.js";
import { PAYLOAD_BYTES, STAMP_BYTES, StampWriter } from "../../devices/stamp.js";
import { TokenBucket } from "../../devices/token-bucket.js";
import { PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { openArena } from "../../memory/arena.js";
import { InFlight } from "../../memory/in-flight.js";
import { RpcClient, serve } from "../../threads/rpc.js";
import type { Driver, DriverHost } from "../guest/driver.js";
import type { PostedDriver } from "../guest/drivers.js";
import type { MmioOperations, PostedVcpus, VcpuOperations } from "./vcpu-protocol.js";

/*
 * The entry of a vCPU thread: vCPUs that write stamped pages to guest memory, as a guest's programs would. A store is
 * bracketed by the vCPU's in-flight words and followed by a mark in the dirty log, while that is on: KVM's ring and
 * write protection come to the same thing.
 */

if (parentPort === null) throw new Error("vcpu-thread.ts is the entry of a worker");

const SLICE_MS = 0.5;
const IDLE_MS = 2;
const UNITS_PER_LOOK = 8;

const posted = workerData as PostedVcpus;
const arenas = posted.arenas.map((memory) => openArena(memory));
const inFlight = new InFlight(posted.inFlight);
const log = SharedLog.open(posted.log.memory, posted.log.bits);
const { logging } = posted;

const vcpus = posted.vcpus.map(({ number, buffers }) => ({
  number,
  writer: new StampWriter(`vcpu${number}`, posted.incarnation, new BufferRing(buffers)),
  bucket: new TokenBucket(posted.rate * 1e6, PAGE_SIZE),
  pattern: number + 1,
}));
type Vcpu = (typeof vcpus)[number];
const mmio = new RpcClient<MmioOperations>(posted.mmio);
const drivers = await makeDrivers(posted.drivers);

let timer: NodeJS.Timeout | NodeJS.Immediate | undefined;
let running = false;

/** Where a page of RAM lies: its arena, and the offset of its first byte there. */
function locate(page: PageNumber): { arena: (typeof arenas)[number]; at: number } {
  const { regions } = posted;
  for (let i = 0; i < regions.length; i++) {
    const region = regions[i];
    const index = page - region.firstPage;
    if (index < 0 || index >= region.pages) continue;
    return { arena: arenas[region.arena], at: (region.arenaPage + index) * 2 ** PAGE_SHIFT };
  }
  throw new RangeError(`a vCPU reaches for guest page 0x${page.toString(16)}, which is no RAM`);
}

/** A vCPU's store. @param data inside one page */
function store(owner: number, page: PageNumber, offset: number, data: Uint8Array): void {
  const { arena, at } = locate(page);
  inFlight.begin(owner);
  arena.u8.set(data, at + offset);
  if (Atomics.load(logging, 0) !== 0) log.mark(page);
  inFlight.end(owner);
}

/** Most machines have none: then their code is not loaded, which would delay the thread's start. */
async function makeDrivers(given: readonly PostedDriver[]): Promise<Driver[]> {
  if (given.length === 0) return [];
  const { createDriver } = await import("../guest/drivers.js");
  return given.map((driver) => createDriver(driver, driverHost(driver)));
}

function driverHost({ device, vcpu }: PostedDriver): DriverHost {
  return {
    store: (page, offset, data) => store(vcpu, page, offset, data),
    page(page) {
      const { arena, at } = locate(page);
      return arena.u8.subarray(at, at + PAGE_SIZE);
    },
    word(page, offset) {
      const { arena, at } = locate(page);
      return Atomics.load(arena.u32, (at + offset) / 4);
    },
    now: clockMonotonic,
    read: (region, offset) => mmio.call("read", { device, region, offset }),
    write: (region, writes) => mmio.call("write", { device, region, writes }),
    counters: () => mmio.call("counters", { device }),
  };
}

/** Returns how many milliseconds may pass before the next slice. */
function slice({ number, writer, bucket }: Vcpu): number {
  const now = clockMonotonic();
  bucket.refill(now);
  writer.setTime(now);
  const until = performance.now() + SLICE_MS;
  for (let units = 1; bucket.take(PAGE_SIZE); units++) {
    render(number, writer.staging, writer.lastSequence);
    const bytes = writer.stamp(PAYLOAD_BYTES);
    store(number, writer.nextPage, 0, bytes === PAGE_SIZE ? writer.staging : writer.staging.subarray(0, bytes));
    writer.commit();
    if (units % UNITS_PER_LOOK === 0 && performance.now() > until) return 0;
  }
  return bucket.wait(PAGE_SIZE, IDLE_MS);
}

/** A payload that differs from page to page. */
function render(vcpu: number, unit: Uint8Array, sequence: number): void {
  for (let at = STAMP_BYTES; at < PAGE_SIZE; at += 64) unit[at] = (sequence + vcpu * 31 + at) & 0xff;
}

function turn(): void {
  timer = undefined;
  if (!running) return;
  let wait = IDLE_MS;
  for (const vcpu of vcpus) wait = Math.min(wait, slice(vcpu));
  for (const driver of drivers) wait = Math.min(wait, driver.slice());
  timer = wait > 0 ? setTimeout(turn, Math.max(wait, 0.2)) : setImmediate(turn);
}

const operations: VcpuOperations = {
  resume() {
    running = true;
    if (timer === undefined) timer = setImmediate(turn);
  },
  async pause() {
    running = false;
    for (const { bucket } of vcpus) bucket.pause();
    for (const driver of drivers) await driver.pause();
  },
  save: () => ({
    vcpus: vcpus.map(({ number, writer: { lastSequence, epochs } }) => ({
      number,
      progress: { lastSequence, epochs },
    })),
    drivers: drivers.map((driver) => driver.save()),
  }),
  load(states) {
    for (const { number, progress } of states.vcpus) {
      const vcpu = vcpus.find((candidate) => candidate.number === number);
      vcpu?.writer.resumeAfter(progress.lastSequence, progress.epochs);
    }
    for (const state of states.drivers) drivers.find(({ device }) => device === state.device)?.load(state);
  },
  trails: () => vcpus.map(({ writer }) => writer.trail()),
  async startDrivers(devices) {
    for (const driver of drivers) if (devices.includes(driver.device)) await driver.start();
  },
  async drainDrivers({ stallMs, limitMs }) {
    for (const driver of drivers) driver.draining = true;
    try {
      const end = performance.now() + limitMs;
      let open = Number.POSITIVE_INFINITY;
      let stalledAt = 0;
      for (let now = performance.now(); now < end; now = performance.now()) {
        const left = drivers.reduce((sum, { busy }) => sum + busy, 0);
        if (left < open) stalledAt = now + stallMs;
        open = left;
        if (left === 0 || now >= stalledAt) break;
        await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
      }
      const reports = [];
      for (const driver of drivers) reports.push(await driver.report());
      return reports;
    } finally {
      for (const driver of drivers) driver.draining = false;
    }
  },
};

serve(parentPort, operations);
