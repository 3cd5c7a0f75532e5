import { randomInt } from "node:crypto";
import { Feeder } from "../devices/feeder.js";
import { checkStamps, type StampTrail } from "../devices/stamp.js";
import { type MachineDescription, platformOf } from "../host/description.js";
import type { AttachedDevice, Machine } from "../host/host.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { fillMemory } from "../memory/fill.js";
import { createGuestMemory, type GuestMemory } from "../memory/guest-memory.js";
import { EmulatedDesigns } from "./designs/designs.js";
import { EmulatedHost } from "./host.js";
import { layoutWorkload, type WorkloadLayout } from "./layout.js";
import type { DmaHold } from "./threads/hold.js";
import { EmulatedVcpus } from "./threads/vcpus.js";
import type { EmulatedVfioDevice } from "./vfio/device.js";

export interface EmulatedMachineOptions {
  /** Build it as a destination needs it: memory empty, nothing runs, nothing does DMA. */
  readonly paused?: boolean;
  /** Which instance writes, in stamps; 32 bits. Default: a random one. */
  readonly incarnation?: number;
  /** For tests: places to hold a device's DMA up, by device id. */
  readonly holds?: ReadonlyMap<string, DmaHold>;
}

/** What the stamps in memory say. */
export interface StampAudit {
  readonly stamps: {
    readonly checked: number;
    readonly problems: readonly { readonly owner: string; readonly kind: string; readonly count: number }[];
  };
  /** Units that this instance has written, by device and vCPU. */
  readonly written: Readonly<Record<string, number>>;
}

/**
 * Builds a machine on an emulated host: reserves and fills its memory, maps it for DMA, opens, binds and attaches its
 * devices, and lets it run.
 * @throws UsageError `MEMORY_DOES_NOT_FIT`; then nothing is left
 */
export async function createEmulatedMachine(
  description: MachineDescription,
  options: EmulatedMachineOptions = {},
): Promise<EmulatedMachine> {
  const memory = createGuestMemory(description.memory, platformOf(description));
  const machine = new EmulatedMachine(
    description,
    memory,
    layoutWorkload(description, memory.regions),
    options.incarnation ?? randomInt(1, 2 ** 32),
    options.holds,
  );
  try {
    await machine.open();
    if (options.paused !== true) {
      fillMemory(memory, description.fill, description.seed);
      await machine.powerOn();
    }
    return machine;
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

/** The part of a VMM: it owns the guest's memory, vCPUs and devices, and knows what may reach what. */
export class EmulatedMachine implements Machine {
  readonly host: EmulatedHost;
  readonly memory: GuestMemory;
  readonly vcpus: EmulatedVcpus;
  readonly devices: (AttachedDevice & { readonly vfio: EmulatedVfioDevice })[] = [];
  readonly designs: EmulatedDesigns;
  /** Told by whoever asks {@link failure}: a thread of devices or vCPUs has ended. */
  #failure: Error | undefined;
  readonly #description: MachineDescription;
  readonly #layout: WorkloadLayout;
  readonly #incarnation: number;
  readonly #unreachable = new Set<string>();
  #feeder: Feeder | undefined;

  constructor(
    description: MachineDescription,
    memory: GuestMemory,
    layout: WorkloadLayout,
    incarnation: number,
    holds?: ReadonlyMap<string, DmaHold>,
  ) {
    this.#description = description;
    this.#layout = layout;
    this.#incarnation = incarnation;
    this.memory = memory;
    const onDeath = (error: Error) => {
      this.#failure ??= error;
    };
    this.host = new EmulatedHost({
      description,
      layout,
      memory,
      incarnation,
      onDeath,
      ...(holds === undefined ? {} : { holds }),
    });
    const { rate } = description.vcpus;
    this.vcpus = new EmulatedVcpus({ memory, buffers: layout.vcpus, rate, incarnation, onDeath });
    this.designs = new EmulatedDesigns({ memory, physical: this.host.physical });
  }

  /** Why the machine can't go on: one of its threads has ended. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  get peerMappings(): Machine["peerMappings"] & object {
    return [...this.#layout.bars.values()].map(({ firstPage, pages }) => ({
      iova: iovaOf(firstPage),
      length: BigInt(pages) * BigInt(PAGE_SIZE),
    }));
  }

  /** Maps memory and BARs, and opens, binds and attaches the devices. */
  async open(): Promise<void> {
    const iommufd = await this.host.openIommufd();
    const ioas = await iommufd.allocIoas();
    for (const { firstPage, pages, arena, arenaPage, writeable } of this.memory.regions) {
      const span = { arena: this.memory.arenas[arena], offset: arenaPage * PAGE_SIZE, length: pages * PAGE_SIZE };
      await iommufd.map(ioas, span, { iova: iovaOf(firstPage), readable: true, writeable });
    }
    for (const { device, firstPage, pages } of this.#layout.bars.values()) {
      const { memory } = this.host.slot(device);
      if (memory === null) continue;
      const span = { arena: memory.arena, offset: 0, length: pages * PAGE_SIZE };
      await iommufd.map(ioas, span, { iova: iovaOf(firstPage), readable: true, writeable: true });
    }
    for (const { id, kind, model } of await this.host.devices()) {
      const vfio = await this.host.openDevice(id);
      const deviceId = await vfio.bind(iommufd);
      await vfio.attach(ioas);
      this.devices.push({ id, model, vfio, iommufd, deviceId, ioas, mdev: kind === "mdev" });
    }
    // A rehearsal, like the device threads': what a destination does in the downtime should not run for the first time.
    await this.vcpus.loadState(await this.vcpus.saveState());
    for (const target of this.#description.devices) await this.#applyP2p(target.id);
    await this.#startFeeder();
  }

  /** As at a guest's boot: drivers let their devices do DMA, and the vCPUs run. */
  async powerOn(): Promise<void> {
    for (const { vfio } of this.devices) await vfio.enableBusMaster();
    await this.vcpus.resume();
  }

  mayP2p(initiator: string, target: string): boolean {
    if (initiator === target || this.#unreachable.has(target)) return false;
    const { p2p, devices } = this.#description;
    if (p2p !== "table") return p2p === "all";
    return devices.find(({ id }) => id === initiator)?.p2pTargets.includes(target) ?? false;
  }

  async setP2pReachable(device: string, reachable: boolean): Promise<void> {
    if (reachable) this.#unreachable.delete(device);
    else this.#unreachable.add(device);
    await this.#applyP2p(device);
  }

  /**
   * Checks every stamp in memory against how far its writer came. The machine is stopped for it, in the order in which a
   * migration stops one, and runs on afterwards.
   */
  async audit(): Promise<StampAudit> {
    await this.vcpus.pause();
    const running = [];
    for (const { vfio } of this.devices) {
      const state = await vfio.state();
      if (state === "RUNNING") running.push(vfio);
    }
    for (const vfio of running) if ((await vfio.migration()).p2p) await vfio.setState("RUNNING_P2P");
    for (const vfio of running) await vfio.setState("STOP");
    try {
      const trails = [...(await this.vcpus.trails())];
      for (const { vfio } of this.devices) trails.push(await vfio.stamps());
      return this.#checkTrails(trails);
    } finally {
      for (const vfio of running) if ((await vfio.migration()).p2p) await vfio.setState("RUNNING_P2P");
      for (const vfio of running) await vfio.setState("RUNNING");
      await this.vcpus.resume();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#feeder?.[Symbol.asyncDispose]();
    await this.vcpus[Symbol.asyncDispose]();
    await this.host[Symbol.asyncDispose]();
  }

  #checkTrails(trails: readonly StampTrail[]): StampAudit {
    const problems: { owner: string; kind: string; count: number }[] = [];
    const written: Record<string, number> = {};
    let checked = 0;
    for (const trail of trails) {
      const report = checkStamps(this.memory, trail);
      checked += report.checked;
      for (const kind of ["lost", "torn", "reordered", "foreign"] as const) {
        const count = report[kind];
        if (count > 0) problems.push({ owner: trail.writer, kind, count });
      }
      const own = trail.epochs.find(({ incarnation }) => incarnation === this.#incarnation);
      written[trail.writer] = own === undefined ? 0 : trail.lastSequence - own.firstSequence + 1;
    }
    return { stamps: { checked, problems }, written };
  }

  /** Tells the devices' ports what {@link mayP2p} says of this target. */
  async #applyP2p(target: string): Promise<void> {
    const { inFlight, p2p } = this.host;
    const to = this.host.slot(target).port;
    for (const { id } of this.#description.devices) {
      if (id !== target) await p2p.set(inFlight, this.host.slot(id).port, to, this.mayP2p(id, target));
    }
  }

  async #startFeeder(): Promise<void> {
    for (const { id, vfio } of this.devices) {
      const { udpPort } = await vfio.counters();
      const rate = this.#description.devices.find((device) => device.id === id)?.load.rate ?? 0;
      if (udpPort === undefined || rate === 0) continue;
      this.#feeder ??= new Feeder();
      await this.#feeder.feed(udpPort, rate);
    }
  }
}
