import { joined } from "../../bitmap/ranges.js";
import { hex, iovaOf, PAGE_SIZE } from "../../memory/address.js";
import { safeText } from "../../safe-text.js";
import { dirtmap_counters } from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import type { ClientMemory } from "./client-memory.js";
import type { DmaLog } from "./dma-logging.js";
import { sizedRequestOf } from "./refusal.js";
import type { ServedDevice } from "./served-device.js";

/** Characters of what is wrong with the device's state. */
const MAX_PROBLEM = 1000;

/** Places in the client's memory that are told: a machine has few, and a list of thousands fits no answer. */
const MAX_PLACES = 256;

/** Raised when a reader of the old could misread the new. */
const SCHEMA_VERSION = 1;

/**
 * DIRTMAP_COMMAND.COUNTERS: JSON, see docs/vfio-user.md. Where the client has no room for all of it, it learns from `argsz`
 * how much that is.
 */
export function getCounters(message: Message, device: ServedDevice): Uint8Array {
  return writeCounters(message, report(device));
}

/** The answer with this report. */
export function writeCounters({ payload }: Message, told: object): Uint8Array {
  const { argsz: room } = sizedRequestOf(dirtmap_counters, payload, "counters");
  const json = new TextEncoder().encode(`${JSON.stringify({ schemaVersion: SCHEMA_VERSION, ...told })}\0`);
  const argsz = dirtmap_counters.size + json.byteLength;
  const reply = new Uint8Array(room < argsz ? dirtmap_counters.size : argsz);
  dirtmap_counters.encode({ argsz }, reply);
  if (room >= argsz) reply.set(json, dirtmap_counters.size);
  return reply;
}

function report(device: ServedDevice): object {
  const { id, model, memory, logging, driver } = device;
  const { info } = model;
  return {
    id,
    model: info.model,
    state: info.migration === null ? null : driver.state,
    failure: device.failure ?? null,
    migration: device.movement.custody.report,
    busMaster: model.busMaster,
    tracking: info.tracking,
    dmaLogging: info.dmaLogging,
    log: logReport(logging.state),
    writePath: device.writePath.state,
    mapped: mappedReport(memory),
    waitsForState: device.movement.waitsForState,
    dma: { ...memory.counts, regions: memory.size },
    messages: device.messages,
    shape: { stateVersion: info.stateVersion, facts: model.facts?.() ?? {} },
    problem: driver.problem === null ? null : safeText(driver.problem, MAX_PROBLEM),
    device: model.counters(),
    // What its stamps in memory must be: of models whose DMA is stamped.
    trail: model.trail?.() ?? null,
  };
}

/** What the device can write, of the client's memory; null where it is in too many places to be told. */
export function mappedReport(memory: ClientMemory): object | null {
  const stretches = memory
    .regions()
    .filter(({ writeable }) => writeable)
    .map(({ page, pages }) => ({ iova: iovaOf(page), length: BigInt(pages * PAGE_SIZE) }));
  const places = joined(stretches);
  if (places.length > MAX_PLACES) return null;
  return places.map(({ iova, length }) => ({ iova: hex(iova), bytes: Number(length) }));
}

export function logReport(state: DmaLog["state"]): object | null {
  if (state === null) return null;
  const { granule, ranges, startedBy } = state;
  return {
    granule,
    startedBy,
    ranges: ranges.map(({ page, pages }) => ({ iova: hex(iovaOf(page)), bytes: pages * PAGE_SIZE })),
  };
}
