import { workerData } from "node:worker_threads";
import { DmaLog } from "../../src/devices/dma-log.js";
import { IommuDmaPort } from "../../src/emulated/iommu/dma-port.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import { openArena } from "../../src/memory/arena.js";
import { InFlight } from "../../src/memory/in-flight.js";
import {
  COMPARED,
  COUNTS,
  FAULTS,
  FINISHED,
  FIRST_PAGE,
  GROUPS,
  PAGES_PER_GROUP,
  STAMP_SPACING,
  STOP,
  type WriterData,
} from "./harness.js";

/* A writer of the stress: see harness.ts. */

const { writer, tracker, control, rounds, seed, markBeforeStore, wiring, log: posted } = workerData as WriterData;
const log = posted === null ? null : DmaLog.open(posted);

let state = seed | 1;
/** Marsaglia's xorshift32; 0 to bound - 1. */
function random(bound: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % bound;
}

/** Turns of the idle loop that take about 30 microseconds: several times what the reader needs to clear and copy. */
const LONG = 30_000;

let idle = 0;
function stall(): void {
  const kind = random(64);
  const turns = kind === 0 ? random(LONG) : kind < 8 ? random(256) : 0;
  for (let turn = 0; turn < turns; turn++) idle = (idle + turn) | 0;
}

const port = new IommuDmaPort(wiring, { afterTranslate: stall });
if (tracker === "device-log" && !markBeforeStore) port.log = log;
const inFlight = new InFlight(wiring.inFlight);
const ram = openArena(wiring.physical[0].memory).u8;

const stamp = new Int32Array(1);
const bytes = new Uint8Array(stamp.buffer);

/** Writes the stamp at a page and offset in it, the way that this tracker's devices do. */
function write(page: number, offset: number): void {
  if (markBeforeStore) {
    log?.mark(FIRST_PAGE + page);
    stall();
  }
  if (tracker === "cpu-log") {
    inFlight.begin(writer);
    if (!markBeforeStore) stall();
    for (let i = 0; i < bytes.length; i++) ram[page * PAGE_SIZE + offset + i] = bytes[i];
    if (!markBeforeStore) log?.mark(FIRST_PAGE + page);
    inFlight.end(writer);
  } else if (port.write(FIRST_PAGE + page, offset, bytes, 0, bytes.length) !== null) {
    Atomics.add(control, FAULTS, 1);
  }
}

/** Waits until the reader has compared a group's last round. False: the run has been stopped. */
function comparedUpTo(group: number, round: number): boolean {
  for (let spin = 0; Atomics.load(control, STOP) === 0; spin++) {
    const compared = Atomics.load(control, COMPARED + group);
    if (compared >= round) return true;
    if (spin > 1000) Atomics.wait(control, COMPARED + group, compared, 10);
  }
  return false;
}

function run(): void {
  const order = Array.from({ length: PAGES_PER_GROUP }, (_, index) => index);
  for (let round = 1; round <= rounds; round++) {
    stamp[0] = round;
    for (let group = 0; group < GROUPS; group++) {
      if (!comparedUpTo(group, round - 1)) return;
      for (let index = order.length - 1; index > 0; index--) {
        const other = random(index + 1);
        [order[index], order[other]] = [order[other], order[index]];
      }
      let count = 0;
      for (const index of order) {
        const page = group * PAGES_PER_GROUP + index;
        write(page, writer * 2 * STAMP_SPACING);
        count++;
        // A second write finds the translation in the IOTLB, dirty already, unless the reader was there in between.
        if (random(2) === 0) continue;
        write(page, (writer * 2 + 1) * STAMP_SPACING);
        count++;
      }
      Atomics.add(control, COUNTS, count);
      Atomics.store(control, FINISHED + writer * GROUPS + group, round);
    }
  }
}

run();
