import { type MachineDescription, type ModelledDescription, runsHere } from "../host/description.js";
import type { DeviceSummary, Host } from "../host/host.js";
import type { ReplaySchedule } from "../host/replay-schedule.js";
import type { Port } from "../iommufd/system-iommu.js";
import type { Arena } from "../memory/arena.js";
import { createArena } from "../memory/arena.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import { InFlight } from "../memory/in-flight.js";
import { UapiError } from "../uapi/errno.js";
import { P2pMatrix } from "./iommu/p2p-matrix.js";
import { PortCounters } from "./iommu/port-counters.js";
import { EmulatedSystemIommu } from "./iommu/system-iommu.js";
import { EmulatedIommufd } from "./iommufd.js";
import { deviceMemoryBytes, type WorkloadLayout } from "./layout.js";
import { PhysicalMemory } from "./physical-memory.js";
import type { PostedDevice } from "./threads/device-protocol.js";
import { DeviceThreads } from "./threads/device-threads.js";
import type { DmaHold } from "./threads/hold.js";
import { EmulatedVfioDevice } from "./vfio/device.js";

/** The parts of an emulated host. */
export interface EmulatedHostOptions {
  readonly description: MachineDescription;
  readonly layout: WorkloadLayout;
  readonly memory: GuestMemory;
  /** A 32-bit number that identifies the machine instance in stamps. */
  readonly incarnation: number;
  /** The writes of its `replay` devices, by device id. */
  readonly replays?: ReadonlyMap<string, ReplaySchedule>;
  /** Called when a device thread ends unexpectedly: the machine has failed. */
  readonly onDeath: (error: Error) => void;
  /** True: its devices take over from another machine's. Default: false. */
  readonly incoming?: boolean;
  /** For tests: points at which a device's DMA can be held up, by device id. */
  readonly holds?: ReadonlyMap<string, DmaHold>;
}

/** A device of the host: where it sits, and what lies behind its BAR. */
interface Slot {
  readonly port: Port;
  readonly description: ModelledDescription;
  readonly iommu: EmulatedSystemIommu | null;
  readonly memory: { readonly arena: Arena; readonly bytes: number } | null;
  opened: EmulatedVfioDevice | null;
}

/**
 * The host in this process: physical memory, system IOMMUs, and devices on threads of their own. A device's port is its index
 * in the description. The host leaves out described devices that run in other processes.
 */
export class EmulatedHost implements Host {
  readonly name = "emulated";
  readonly inFlight: InFlight;
  readonly physical = new PhysicalMemory();
  readonly p2p: P2pMatrix;
  readonly iommus: ReadonlyMap<string, EmulatedSystemIommu>;
  readonly #options: EmulatedHostOptions;
  readonly #slots = new Map<string, Slot>();
  readonly #threads: DeviceThreads;
  readonly #iommufds: EmulatedIommufd[] = [];

  /** @throws UsageError `MEMORY_DOES_NOT_FIT` */
  constructor(options: EmulatedHostOptions) {
    const { description, memory } = options;
    const devices = description.devices.length;
    this.#options = options;
    this.inFlight = InFlight.allocate(Math.max(1, devices));
    this.p2p = P2pMatrix.allocate(Math.max(1, devices));
    for (const arena of memory.arenas) this.physical.register(arena, { kind: "ram" });
    this.iommus = new Map(
      description.iommus.map(({ id, format, dirtyTracking }) => [
        id,
        new EmulatedSystemIommu({
          format,
          dirtyTracking,
          ports: Math.max(1, devices),
          inFlight: this.inFlight,
          physical: this.physical,
        }),
      ]),
    );
    description.devices.forEach((device, port) => {
      if (!runsHere(device)) return;
      const bytes = deviceMemoryBytes(device, description);
      const slotMemory = bytes === 0 ? null : { arena: createArena(bytes), bytes };
      if (slotMemory !== null) this.physical.register(slotMemory.arena, { kind: "bar", port });
      const iommu = "iommu" in device && device.iommu !== undefined ? (this.iommus.get(device.iommu) ?? null) : null;
      this.#slots.set(device.id, { port, description: device, iommu, memory: slotMemory, opened: null });
    });
    this.#threads = new DeviceThreads(description.deviceThreads, options.onDeath);
  }

  async devices(): Promise<DeviceSummary[]> {
    return [...this.#slots.values()].map(({ description: { id, model }, port, iommu }) => ({
      id,
      model,
      kind: iommu === null ? "mdev" : "pci",
      // Each function in a group of its own, as behind a root port with ACS.
      iommuGroup: iommu === null ? null : port,
    }));
  }

  async openIommufd(): Promise<EmulatedIommufd> {
    const iommufd = new EmulatedIommufd({ physical: this.physical, inFlight: this.inFlight });
    this.#iommufds.push(iommufd);
    return iommufd;
  }

  async openDevice(id: string): Promise<EmulatedVfioDevice> {
    const call = { syscall: "open", attempted: `open device '${id}'` };
    const slot = this.#slots.get(id);
    if (slot === undefined) {
      const ids = [...this.#slots.keys()].join(", ") || "none";
      throw new UapiError("ENODEV", { ...call, remedy: `there are: ${ids}` });
    }
    if (slot.opened !== null) throw new UapiError("EBUSY", { ...call, remedy: "close it first: it is open" });
    const { port, iommu } = slot;
    const client = await this.#threads.place(this.#posted(slot));
    slot.opened = await EmulatedVfioDevice.open({
      client,
      port,
      iommu,
      inFlight: this.inFlight,
      physical: this.physical,
      onClose: () => {
        slot.opened = null;
      },
    });
    return slot.opened;
  }

  /** Returns a device's port, and the memory behind its BAR; null: it has none. @throws UapiError ENODEV */
  slot(id: string): { readonly port: Port; readonly memory: { readonly arena: Arena; readonly bytes: number } | null } {
    const slot = this.#slots.get(id);
    if (slot === undefined) throw new UapiError("ENODEV", { syscall: "open", attempted: `find device '${id}'` });
    return slot;
  }

  /** For tests: kills one of the device threads. */
  async killThread(thread: number): Promise<void> {
    await this.#threads.kill(thread);
  }

  /** Closes devices, then iommufds, then ends the threads. */
  async [Symbol.asyncDispose](): Promise<void> {
    const closing = [...this.#slots.values()].map(({ opened }) => opened?.[Symbol.asyncDispose]());
    await Promise.allSettled(closing);
    for (const iommufd of this.#iommufds) await iommufd[Symbol.asyncDispose]();
    await this.#threads[Symbol.asyncDispose]();
    for (const iommu of this.iommus.values()) await iommu[Symbol.asyncDispose]();
  }

  #posted({ port, description, iommu, memory }: Slot): Omit<PostedDevice, "device"> {
    const { layout, incarnation, description: machine, holds, incoming = false, replays } = this.#options;
    const counters = PortCounters.allocate();
    const iotlb = "iommu" in description ? machine.iommus.find(({ id }) => id === description.iommu)?.iotlb : undefined;
    const place = layout.devices.get(description.id);
    const replay = replays?.get(description.id);
    return {
      description,
      wiring: {
        incarnation,
        seed: machine.seed,
        buffers: place?.buffers ?? [],
        p2p: place?.p2p ?? [],
        incoming,
        ...(replay === undefined ? {} : { replay }),
      },
      memory: memory === null ? null : { memory: memory.arena.memory, bytes: memory.bytes },
      port:
        iommu === null || iotlb === undefined
          ? {
              kind: "pins",
              wiring: {
                port,
                inFlight: this.inFlight.words,
                physical: this.physical.posted(),
                counters: counters.values,
              },
            }
          : {
              kind: "iommu",
              wiring: iommu.wiring(port, { p2p: this.p2p, counters, iotlb }),
            },
      hold: holds?.get(description.id)?.words ?? null,
    };
  }
}
