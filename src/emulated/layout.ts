import type { PageSpan } from "../devices/buffers.js";
import { UsageError } from "../errors.js";
import { type DeviceDescription, drivenModel, isServed, type MachineDescription } from "../host/description.js";
import { GiB, MiB, PAGE_SIZE, type PageNumber } from "../memory/address.js";
import type { MemoryRegion } from "../memory/guest-memory.js";

/*
 * Where in the guest-physical (and so the I/O virtual) address space the workload's parts lie: buffers of devices and
 * vCPUs in RAM, each its own; and BARs, in the PCI hole below 4 GiB as far as they fit there, above all RAM otherwise.
 */

/** The PCI hole: what a PC leaves between low RAM and the chipset's own registers. */
const HOLE_FIRST = 0xe0000000 / PAGE_SIZE;
const HOLE_END = 0xfe000000 / PAGE_SIZE;

/** Below 1 MiB lie the guest's firmware and its real-mode memory. */
const FIRST_BUFFER_PAGE = MiB / PAGE_SIZE;

/** Memory behind the BAR of a device that others write to, where its description says nothing of it. */
const PEER_MEMORY_BYTES = MiB;

/** What traces are replayed to is kept from others by whole blocks, so that what is left lies in few stretches. */
const TAKEN_BLOCK_PAGES = (2 * MiB) / PAGE_SIZE;

/** Most of a BAR that one peer writes to. */
const MAX_PEER_PAGES = 64;

/** A BAR that peers reach. */
export interface BarLayout {
  readonly device: string;
  readonly firstPage: PageNumber;
  readonly pages: number;
}

/** What a device uses. */
export interface DeviceLayout {
  readonly buffers: readonly PageSpan[];
  readonly p2p: readonly { readonly target: string; readonly pages: PageSpan }[];
}

export interface WorkloadLayout {
  /** By device id. */
  readonly devices: ReadonlyMap<string, DeviceLayout>;
  /** By vCPU number. */
  readonly vcpus: readonly (readonly PageSpan[])[];
  /** BARs with memory behind them, by device id. To be mapped at these IOVAs for whoever may P2P. */
  readonly bars: ReadonlyMap<string, BarLayout>;
}

/**
 * Bytes behind a device's BAR 2; 0: it has none. A vGPU has its video memory, others only what peers write to; no peer
 * reaches a device in another process.
 */
export function deviceMemoryBytes(device: DeviceDescription, machine: MachineDescription): number {
  if (isServed(device) || drivenModel(device) !== undefined) return 0;
  if (device.model === "vgpu") return Math.ceil(device.vram / PAGE_SIZE) * PAGE_SIZE;
  return machine.devices.some(({ p2pTargets }) => p2pTargets.includes(device.id)) ? PEER_MEMORY_BYTES : 0;
}

/**
 * Gives each device and vCPU its own buffers, none of them where `taken` names a page (what traces will be replayed to). Where there is RAM above 4 GiB, each gets part of its buffers there, in
 * proportion.
 * @throws UsageError `MEMORY_DOES_NOT_FIT` where the footprints are more than the RAM
 */
export function layoutWorkload(
  machine: MachineDescription,
  regions: readonly MemoryRegion[],
  taken: Iterable<Uint32Array> = [],
): WorkloadLayout {
  const space = new BufferSpace(regions, taken);
  const footprint = (bytes: number) => Math.ceil(bytes / PAGE_SIZE);
  const wanted =
    machine.devices.reduce((sum, { load }) => sum + footprint(load.footprint), 0) +
    machine.vcpus.count * footprint(machine.vcpus.footprint);
  if (wanted > space.free) {
    throw new UsageError(
      `the footprints of devices and vCPUs are ${wanted * PAGE_SIZE} bytes, and RAM for buffers is ${space.free * PAGE_SIZE}`,
      { code: "MEMORY_DOES_NOT_FIT", remedy: "give the machine more memory, or smaller footprints" },
    );
  }
  const bars = layoutBars(machine, regions);
  return {
    bars,
    devices: new Map(
      machine.devices.map((device) => [
        device.id,
        { buffers: space.take(footprint(device.load.footprint)), p2p: peers(device, machine, bars) },
      ]),
    ),
    vcpus: Array.from({ length: machine.vcpus.count }, () => space.take(footprint(machine.vcpus.footprint))),
  };
}

/** What is left of a stretch without the blocks that are taken. */
function without({ firstPage, pages }: PageSpan, taken: ReadonlySet<number>): { firstPage: number; pages: number }[] {
  const left: { firstPage: number; pages: number }[] = [];
  const end = firstPage + pages;
  for (let from = firstPage; from < end; ) {
    const block = Math.floor(from / TAKEN_BLOCK_PAGES);
    const to = Math.min(end, (block + 1) * TAKEN_BLOCK_PAGES);
    const last = left.at(-1);
    if (!taken.has(block)) {
      if (last !== undefined && last.firstPage + last.pages === from) last.pages += to - from;
      else left.push({ firstPage: from, pages: to - from });
    }
    from = to;
  }
  return left;
}

/** Writeable RAM from 1 MiB on that no one has yet. */
class BufferSpace {
  readonly #free: { firstPage: PageNumber; pages: number }[];

  constructor(regions: readonly MemoryRegion[], taken: Iterable<Uint32Array>) {
    const blocks = new Set<number>();
    for (const pages of taken) for (const page of pages) blocks.add(Math.floor(page / TAKEN_BLOCK_PAGES));
    const stretches = regions
      .filter(({ writeable, firstPage, pages }) => writeable && firstPage + pages > FIRST_BUFFER_PAGE)
      .map(({ firstPage, pages }) => {
        const from = Math.max(firstPage, FIRST_BUFFER_PAGE);
        return { firstPage: from, pages: firstPage + pages - from };
      });
    this.#free = blocks.size === 0 ? stretches : stretches.flatMap((stretch) => without(stretch, blocks));
  }

  get free(): number {
    return this.#free.reduce((sum, { pages }) => sum + pages, 0);
  }

  /** At most {@link free} pages, from each stretch in proportion. */
  take(pages: number): PageSpan[] {
    const free = this.free;
    const spans: PageSpan[] = [];
    let left = pages;
    this.#free.forEach((stretch, index) => {
      const isLast = index === this.#free.length - 1;
      const share = isLast ? left : Math.min(left, Math.ceil((pages * stretch.pages) / free));
      const taken = Math.min(share, stretch.pages);
      if (taken === 0) return;
      spans.push({ firstPage: stretch.firstPage, pages: taken });
      stretch.firstPage += taken;
      stretch.pages -= taken;
      left -= taken;
    });
    return spans;
  }
}

function layoutBars(machine: MachineDescription, regions: readonly MemoryRegion[]): Map<string, BarLayout> {
  const bars = new Map<string, BarLayout>();
  const endOfRam = Math.max(...regions.map(({ firstPage, pages }) => firstPage + pages), (4 * GiB) / PAGE_SIZE);
  const holeIsFree = regions.every(({ firstPage, pages }) => firstPage >= HOLE_END || firstPage + pages <= HOLE_FIRST);
  let low = holeIsFree ? HOLE_FIRST : HOLE_END;
  let high = alignUp(endOfRam, GiB / PAGE_SIZE);
  for (const device of machine.devices) {
    const pages = deviceMemoryBytes(device, machine) / PAGE_SIZE;
    if (pages === 0) continue;
    // A BAR is a power of two and lies at a multiple of itself.
    const size = 2 ** Math.ceil(Math.log2(pages));
    let firstPage = alignUp(low, size);
    if (firstPage + size <= HOLE_END) low = firstPage + size;
    else {
      firstPage = alignUp(high, size);
      high = firstPage + size;
    }
    bars.set(device.id, { device: device.id, firstPage, pages });
  }
  return bars;
}

/** A device's corner of each of its targets' BARs: peers of one target never write to the same page. */
function peers(device: DeviceDescription, machine: MachineDescription, bars: ReadonlyMap<string, BarLayout>) {
  return [...new Set(device.p2pTargets)].flatMap((target) => {
    const bar = bars.get(target);
    if (bar === undefined) return [];
    const initiators = machine.devices.filter(({ p2pTargets }) => p2pTargets.includes(target));
    const share = Math.floor(bar.pages / initiators.length);
    if (share === 0) return [];
    const index = initiators.indexOf(device);
    return [{ target, pages: { firstPage: bar.firstPage + index * share, pages: Math.min(share, MAX_PEER_PAGES) } }];
  });
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
