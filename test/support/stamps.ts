import { BufferRing } from "../../src/devices/buffers.js";
import type { StampTrail } from "../../src/devices/stamp.js";
import type { EmulatedMachine } from "../../src/emulated/machine.js";
import { PAGE_SIZE, type PageNumber } from "../../src/memory/address.js";
import type { GuestMemory } from "../../src/memory/guest-memory.js";

/* What stamps in guest memory tell of who wrote when (the layout of a unit is drawn in src/devices/stamp.ts). */

const MAGIC = 0x504d5453;

/** Units of one machine instance, and when the first and last of those still in memory were written. */
export interface Writing {
  readonly units: number;
  /** CLOCK_MONOTONIC, in nanoseconds: the same clock in all processes of a computer. */
  readonly firstNs: bigint;
  readonly lastNs: bigint;
}

/** By machine instance, what it has written. */
export function writings(memory: GuestMemory): Map<number, Writing> {
  const found = new Map<number, { units: number; firstNs: bigint; lastNs: bigint }>();
  for (const { arena, arenaPage, pages } of memory.regions) {
    const view = new DataView(memory.arenas[arena].u8.buffer, arenaPage * PAGE_SIZE, pages * PAGE_SIZE);
    for (let at = 0; at < view.byteLength; at += PAGE_SIZE) {
      if (view.getUint32(at, true) !== MAGIC) continue;
      const incarnation = view.getUint32(at + 8, true);
      const timeNs = view.getBigUint64(at + 24, true);
      const writing = found.get(incarnation) ?? { units: 0, firstNs: timeNs, lastNs: timeNs };
      found.set(incarnation, writing);
      writing.units++;
      if (timeNs < writing.firstNs) writing.firstNs = timeNs;
      if (timeNs > writing.lastNs) writing.lastNs = timeNs;
    }
  }
  return found;
}

/** Stops all that writes, in the order in which a migration does, and tells how far each writer came. */
export async function stopAndAsk({ vcpus, devices }: EmulatedMachine): Promise<Map<string, StampTrail>> {
  await vcpus.pause();
  for (const { vfio } of devices) if ((await vfio.migration()).p2p) await vfio.setState("RUNNING_P2P");
  for (const { vfio } of devices) await vfio.setState("STOP");
  const trails = await vcpus.trails();
  for (const { id, vfio } of devices) {
    const trail = await vfio.stamps();
    if (trail === null) throw new Error(`${id} has no stamps`);
    trails.push(trail);
  }
  return new Map(trails.map((trail) => [trail.writer, trail]));
}

/** Undoes {@link stopAndAsk}. */
export async function runOn({ vcpus, devices }: EmulatedMachine): Promise<void> {
  for (const { vfio } of devices) if ((await vfio.migration()).p2p) await vfio.setState("RUNNING_P2P");
  for (const { vfio } of devices) await vfio.setState("RUNNING");
  await vcpus.resume();
}

/** The guest pages that a writer wrote between two looks at how far it came. */
export function pagesWritten(before: StampTrail | undefined, after: StampTrail | undefined): Set<PageNumber> {
  if (before === undefined || after === undefined) throw new Error("no such writer");
  const ring = new BufferRing(after.spans, after.blockSlots);
  const pages = new Set<PageNumber>();
  for (let sequence = before.lastSequence + 1; sequence <= after.lastSequence; sequence++) {
    pages.add(ring.pageOf(ring.slotOf(sequence)));
  }
  return pages;
}
