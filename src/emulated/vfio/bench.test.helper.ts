import { afterEach } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { StampTrail } from "../../devices/stamp.js";
import { type MachineDescription, machineSchema, runsHere } from "../../host/description.js";
import type { DataStream, ResumingStream, SavingStream } from "../../host/host.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { createGuestMemory, type GuestMemory } from "../../memory/guest-memory.js";
import { InFlight } from "../../memory/in-flight.js";
import { P2pMatrix } from "../iommu/p2p-matrix.js";
import { PortCounters } from "../iommu/port-counters.js";
import { EmulatedSystemIommu } from "../iommu/system-iommu.js";
import { EmulatedIommufd } from "../iommufd.js";
import { deviceMemoryBytes, layoutWorkload } from "../layout.js";
import { PhysicalMemory } from "../physical-memory.js";
import { DeviceThreads } from "../threads/device-threads.js";
import { DmaHold } from "../threads/hold.js";
import { EmulatedVfioDevice } from "./device.js";

/*
 * For tests of VFIO devices: guest memory, one IOMMU, an iommufd with all of the memory mapped, and the devices of a
 * description, opened, bound and attached, on one thread.
 */

export interface Bench extends AsyncDisposable {
  readonly description: MachineDescription;
  readonly memory: GuestMemory;
  readonly iommu: EmulatedSystemIommu;
  readonly iommufd: EmulatedIommufd;
  readonly ioas: number;
  readonly inFlight: InFlight;
  readonly holds: ReadonlyMap<string, DmaHold>;
  readonly deaths: Error[];
  readonly threads: DeviceThreads;
  /** May the initiator write into the target's BAR? At first nobody may. */
  allowP2p(initiator: string, target: string, allowed: boolean): Promise<void>;
  /** The memory behind a device's BAR 2. */
  bar(id: string): Uint8Array;
  device(id: string): EmulatedVfioDevice;
  /** The device's id in the iommufd. */
  deviceId(id: string): number;
}

const FOOTPRINT = 100 * PAGE_SIZE;
export const BLK = { model: "blk", id: "blk0", iommu: "iommu0", load: { rate: 20, footprint: FOOTPRINT } };
export const MLX5 = { model: "mlx5", id: "mlx0", iommu: "iommu0", load: { rate: 20, footprint: FOOTPRINT } };
export const NIC = { model: "nic", id: "nic0", iommu: "iommu0", load: { rate: 20, footprint: FOOTPRINT } };
export const VGPU = { model: "vgpu", id: "vgpu0", load: { rate: 20, footprint: 2 * FOOTPRINT }, vram: 64 * 1024 };

/** RAM above 1 MiB of the 8 MiB that a bench has: one mapped area. */
export const RAM = { iova: BigInt(MiB), length: BigInt(7 * MiB) };

/** A clean bitmap over {@link RAM}. */
export function ramBitmap(): DirtyBitmap {
  return new DirtyBitmap({ ...RAM, granule: PAGE_SIZE });
}

const open: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each[Symbol.asyncDispose]();
});

/** A bench that ends with the test. */
export async function bench(
  devices: readonly object[],
  options: { incarnation?: number; memory?: GuestMemory } = {},
): Promise<Bench> {
  const opened = await openBench(describeMachine(devices), options);
  open.push(opened);
  return opened;
}

/** What a stopped device's stamps in memory must be. */
export async function stampsOf(device: EmulatedVfioDevice): Promise<StampTrail> {
  const trail = await device.stamps();
  if (trail === null) throw new Error(`${device.id} writes no stamps`);
  return trail;
}

export function saving(stream: DataStream | null): SavingStream {
  if (stream?.direction !== "saving") throw new Error("no saving stream");
  return stream;
}

export function resuming(stream: DataStream | null): ResumingStream {
  if (stream?.direction !== "resuming") throw new Error("no resuming stream");
  return stream;
}

/** Reads to the real end of stream. */
export async function readAll(stream: SavingStream, bytes = 4000): Promise<Uint8Array[]> {
  const parts: Uint8Array[] = [];
  for (let part = await stream.read(bytes); part.byteLength > 0; part = await stream.read(bytes)) parts.push(part);
  return parts;
}

/** A description with defaults filled in. */
export function describeMachine(devices: readonly unknown[], memory = 8 * 2 ** 20): MachineDescription {
  return machineSchema.parse({
    memory,
    vcpus: { count: 0 },
    iommus: [{ id: "iommu0", format: "amd-v1" }],
    devices,
  });
}

export async function openBench(
  description: MachineDescription,
  options: { incarnation?: number; memory?: GuestMemory } = {},
): Promise<Bench> {
  const memory = options.memory ?? createGuestMemory(description.memory);
  const ports = description.devices.length;
  const inFlight = InFlight.allocate(ports);
  const physical = new PhysicalMemory();
  for (const arena of memory.arenas) physical.register(arena, { kind: "ram" });
  const bars = description.devices.map((device, port) => {
    const bytes = deviceMemoryBytes(device, description);
    if (bytes === 0) return null;
    const arena = createArena(bytes);
    physical.register(arena, { kind: "bar", port });
    return { arena, bytes };
  });
  const layout = layoutWorkload(description, memory.regions);
  const iommu = new EmulatedSystemIommu({ format: "amd-v1", dirtyTracking: true, ports, inFlight, physical });
  const p2p = P2pMatrix.allocate(ports);
  const iommufd = new EmulatedIommufd({ physical, inFlight });
  const ioas = await iommufd.allocIoas();
  for (const { firstPage, pages, arena, arenaPage, writeable } of memory.regions) {
    const span = { arena: memory.arenas[arena], offset: arenaPage * PAGE_SIZE, length: pages * PAGE_SIZE };
    await iommufd.map(ioas, span, { iova: BigInt(firstPage * PAGE_SIZE), readable: true, writeable });
  }
  for (const { device, firstPage, pages } of layout.bars.values()) {
    const bar = bars[portOf(description, device)];
    if (bar === null) continue;
    const span = { arena: bar.arena, offset: 0, length: pages * PAGE_SIZE };
    await iommufd.map(ioas, span, { iova: BigInt(firstPage * PAGE_SIZE), readable: true, writeable: true });
  }
  const deaths: Error[] = [];
  const threads = new DeviceThreads(1, (error) => deaths.push(error));
  const holds = new Map<string, DmaHold>();
  const devices: EmulatedVfioDevice[] = [];
  const deviceIds = new Map<string, number>();
  for (const [port, device] of description.devices.filter(runsHere).entries()) {
    const counters = PortCounters.allocate();
    const hold = new DmaHold();
    holds.set(device.id, hold);
    const bar = bars[port];
    const client = await threads.place({
      description: device,
      wiring: {
        incarnation: options.incarnation ?? 1,
        seed: description.seed,
        buffers: layout.devices.get(device.id)?.buffers ?? [],
        p2p: layout.devices.get(device.id)?.p2p ?? [],
      },
      memory: bar === null ? null : { memory: bar.arena.memory, bytes: bar.bytes },
      port:
        device.model === "vgpu"
          ? {
              kind: "pins",
              wiring: { port, inFlight: inFlight.words, physical: physical.posted(), counters: counters.values },
            }
          : { kind: "iommu", wiring: iommu.wiring(port, { p2p, counters, iotlb: 64 }) },
      hold: hold.words,
    });
    const opened = await EmulatedVfioDevice.open({
      client,
      port,
      iommu: device.model === "vgpu" ? null : iommu,
      inFlight,
      physical,
    });
    deviceIds.set(opened.id, await opened.bind(iommufd));
    await opened.attach(ioas);
    devices.push(opened);
  }
  return {
    description,
    memory,
    iommu,
    iommufd,
    ioas,
    inFlight,
    holds,
    deaths,
    threads,
    async allowP2p(initiator, target, allowed) {
      await p2p.set(inFlight, portOf(description, initiator), portOf(description, target), allowed);
    },
    bar(id) {
      const bar = bars[portOf(description, id)];
      if (bar === null) throw new Error(`${id} has no BAR 2`);
      return bar.arena.u8.subarray(0, bar.bytes);
    },
    device(id) {
      const found = devices.find((device) => device.id === id);
      if (found === undefined) throw new Error(`no device ${id} on the bench`);
      return found;
    },
    deviceId: (id) => deviceIds.get(id) ?? 0,
    async [Symbol.asyncDispose]() {
      for (const device of devices) await device[Symbol.asyncDispose]();
      await threads[Symbol.asyncDispose]();
      await iommufd[Symbol.asyncDispose]();
      await iommu[Symbol.asyncDispose]();
    },
  };
}

function portOf(description: MachineDescription, id: string): number {
  return description.devices.findIndex((device) => device.id === id);
}

/** Waits until `condition` holds, at most `limitMs`. */
export async function eventually(condition: () => boolean | Promise<boolean>, limitMs = 15_000): Promise<void> {
  const until = performance.now() + limitMs;
  while (!(await condition())) {
    if (performance.now() > until) throw new Error(`did not happen within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
