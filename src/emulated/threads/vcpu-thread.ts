import { parentPort, workerData } from "node:worker_threads";
import { SharedLog } from "../../bitmap/shared-log.js";
import { BufferRing } from "../../devices/buffers.js";
import { clockMonotonic } from "../../devices/clock.js";
import { PAYLOAD_BYTES, STAMP_BYTES, StampWriter } from "../../devices/stamp.js";
import { TokenBucket } from "../../devices/token-bucket.js";
import { PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { openArena } from "../../memory/arena.js";
import { InFlight } from "../../memory/in-flight.js";
import { serve } from "../../threads/rpc.js";
import type { PostedVcpus, VcpuOperations } from "./vcpu-protocol.js";

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
const arenas = posted.arenas.map((memory) => openArena(memory).u8);
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

let timer: NodeJS.Timeout | NodeJS.Immediate | undefined;
let running = false;

function store(owner: number, page: PageNumber, unit: Uint8Array, bytes: number): void {
  const { regions } = posted;
  for (let i = 0; i < regions.length; i++) {
    const region = regions[i];
    const index = page - region.firstPage;
    if (index < 0 || index >= region.pages) continue;
    const at = (region.arenaPage + index) * 2 ** PAGE_SHIFT;
    inFlight.begin(owner);
    arenas[region.arena].set(bytes === PAGE_SIZE ? unit : unit.subarray(0, bytes), at);
    if (Atomics.load(logging, 0) !== 0) log.mark(page);
    inFlight.end(owner);
    return;
  }
  throw new RangeError(`vCPU ${owner} stores to guest page 0x${page.toString(16)}, which is no RAM`);
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
    store(number, writer.nextPage, writer.staging, bytes);
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
  timer = wait > 0 ? setTimeout(turn, Math.max(wait, 0.2)) : setImmediate(turn);
}

const operations: VcpuOperations = {
  resume() {
    running = true;
    if (timer === undefined) timer = setImmediate(turn);
  },
  pause() {
    running = false;
    for (const { bucket } of vcpus) bucket.pause();
  },
  save: () =>
    vcpus.map(({ number, writer: { lastSequence, epochs } }) => ({ number, progress: { lastSequence, epochs } })),
  load(states) {
    for (const { number, progress } of states) {
      const vcpu = vcpus.find((candidate) => candidate.number === number);
      vcpu?.writer.resumeAfter(progress.lastSequence, progress.epochs);
    }
  },
  trails: () => vcpus.map(({ writer }) => writer.trail()),
};

serve(parentPort, operations);
