import { randomInt } from "node:crypto";
import { Feeder } from "../devices/feeder.js";
import { checkStamps, type StampTrail } from "../devices/stamp.js";
import { enableBusMaster, setBuffers, type WorkloadDevice } from "../devices/workload.js";
import { drivenModel, isServed, type MachineDescription, platformOf } from "../host/description.js";
import type { AttachedDevice, Iommufd, Machine, ObjectId } from "../host/host.js";
import type { ReplaySchedule } from "../host/replay-schedule.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { fillMemory } from "../memory/fill.js";
import { createGuestMemory, type GuestMemory } from "../memory/guest-memory.js";
import { shareGuestMemory } from "../memory/shared-guest-memory.js";
import { EmulatedDesigns } from "./designs/designs.js";
import type { RequestReport } from "./guest/driver.js";
import type { PostedDriver } from "./guest/drivers.js";
import { EmulatedHost } from "./host.js";
import { layoutWorkload, type WorkloadLayout } from "./layout.js";
import type { DmaHold } from "./threads/hold.js";
import type { MmioOperations } from "./threads/vcpu-protocol.js";
import { EmulatedVcpus } from "./threads/vcpus.js";

/** The options of {@link createEmulatedMachine}. */
export interface EmulatedMachineOptions {
  /** True: the machine is built as a destination needs it, with empty memory, and without vCPUs running or DMA. Default: false. */
  readonly paused?: boolean;
  /** A 32-bit number that identifies the instance in stamps. Default: a random one. */
  readonly incarnation?: number;
  /** False: only the caller sends datagrams to its NICs, whose counter `udpPort` has the port. Default: true. */
  readonly feed?: boolean;
  /** For tests: points at which a device's DMA can be held up, by device id. */
  readonly holds?: ReadonlyMap<string, DmaHold>;
  /**
   * The source of described devices that run in other processes; required if there are any. The machine owns it from then on,
   * even if the machine can't be made.
   */
  readonly served?: ServedDevices;
  /** The writes of the description's `replay` devices, by device id; required for each of them. */
  readonly replays?: ReadonlyMap<string, ReplaySchedule>;
}

/** Devices of a machine that run in other processes. */
export interface ServedDevices extends AsyncDisposable {
  openIommufd(): Promise<Iommufd>;
  /** @throws UapiError of the connection; UsageError for a device that is not what the description says */
  openDevice(id: string): Promise<WorkloadDevice>;
}

/** How many were looked at, and what is wrong with some. */
interface Findings {
  readonly checked: number;
  readonly problems: readonly { readonly owner: string; readonly kind: string; readonly count: number }[];
}

/** The findings about the stamps in memory and about the requests of the guest's drivers. */
export interface StampAudit {
  readonly stamps: Findings;
  /** Findings about requests; absent: no device has a driver. */
  readonly requests?: Findings;
  /** The units that this instance has written, or the requests that it has completed, by device and vCPU. */
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
  let shared: Disposable | undefined;
  let machine: EmulatedMachine;
  try {
    const memory = createGuestMemory(description.memory, platformOf(description));
    const { replays = new Map<string, ReplaySchedule>() } = options;
    const layout = layoutWorkload(
      description,
      memory.regions,
      [...replays.values()].map(({ pages }) => pages),
    );
    if (description.devices.some(isServed)) shared = shareGuestMemory(memory);
    const { incarnation = randomInt(1, 2 ** 32), holds, served, paused = false } = options;
    machine = new EmulatedMachine(description, memory, layout, { incarnation, holds, served, shared, paused, replays });
  } catch (error) {
    shared?.[Symbol.dispose]();
    await options.served?.[Symbol.asyncDispose]();
    throw error;
  }
  try {
    await machine.open({ feed: options.feed ?? true });
    if (options.paused !== true) {
      fillMemory(machine.memory, description.fill, description.seed);
      await machine.powerOn();
    }
    return machine;
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

/** A machine on an emulated host, in the role of a VMM: it owns the guest's memory, vCPUs and devices, and the P2P table. */
export class EmulatedMachine implements Machine {
  readonly host: EmulatedHost;
  readonly memory: GuestMemory;
  readonly vcpus: EmulatedVcpus;
  /** In the description's order. */
  readonly devices: (AttachedDevice & { readonly vfio: WorkloadDevice })[] = [];
  /** Absent if devices run in other processes, because the emulated kernel that would merge their pages does not see them. */
  readonly designs?: EmulatedDesigns;
  /** Told by whoever asks {@link failure}: a thread of devices or vCPUs has ended. */
  #failure: Error | undefined;
  readonly #description: MachineDescription;
  readonly #layout: WorkloadLayout;
  readonly #incarnation: number;
  readonly #unreachable = new Set<string>();
  readonly #served: ServedDevices | undefined;
  /** Its memory's being shared with other processes. */
  readonly #shared: Disposable | undefined;
  #feeder: Feeder | undefined;

  constructor(
    description: MachineDescription,
    memory: GuestMemory,
    layout: WorkloadLayout,
    {
      incarnation,
      holds,
      served,
      shared,
      replays,
      paused,
    }: {
      incarnation: number;
      paused: boolean;
      holds: ReadonlyMap<string, DmaHold> | undefined;
      served: ServedDevices | undefined;
      shared: Disposable | undefined;
      replays: ReadonlyMap<string, ReplaySchedule>;
    },
  ) {
    this.#served = served;
    this.#shared = shared;
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
      replays,
      onDeath,
      incoming: paused,
      ...(holds === undefined ? {} : { holds }),
    });
    const { rate } = description.vcpus;
    const drivers = driversOf(description, layout);
    const mmio = this.#mmio();
    this.vcpus = new EmulatedVcpus({ memory, buffers: layout.vcpus, rate, incarnation, drivers, mmio, onDeath });
    if (!description.devices.some(isServed)) {
      this.designs = new EmulatedDesigns({ memory, physical: this.host.physical });
    }
  }

  /** The error for which the machine can't go on: one of its threads has ended. undefined while it works. */
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
  async open({ feed }: { feed: boolean }): Promise<void> {
    const iommufd = await this.host.openIommufd();
    const ioas = await this.#mapRam(iommufd);
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
    await this.#openServed();
    // A rehearsal, like the device threads': what a destination does in the downtime should not run for the first time.
    await this.vcpus.loadState(await this.vcpus.saveState());
    for (const { id } of await this.host.devices()) await this.#applyP2p(id);
    if (feed) await this.#startFeeder();
  }

  /** Starts the machine as a guest's boot does: drivers let their devices do DMA, and the vCPUs run. */
  async powerOn(): Promise<void> {
    const driven: string[] = [];
    for (const { id, vfio } of this.devices) {
      const isDriven = drivenModel(vfio) !== undefined;
      if (isDriven) driven.push(id);
      // Of the workload's; another server's device has registers that nobody here knows, and one of the host's was built with them.
      else if (this.#isServed(id) && (await vfio.stamps()) !== null) {
        await setBuffers(vfio, this.#layout.devices.get(id)?.buffers ?? []);
      }
      await enableBusMaster(vfio);
    }
    await this.vcpus.startDrivers(driven);
    await this.vcpus.resume();
  }

  mayP2p(initiator: string, target: string): boolean {
    if (initiator === target || this.#unreachable.has(target)) return false;
    const { p2p, devices } = this.#description;
    if (devices.some((device) => isServed(device) && (device.id === initiator || device.id === target))) return false;
    if (p2p !== "table") return p2p === "all";
    return devices.find(({ id }) => id === initiator)?.p2pTargets.includes(target) ?? false;
  }

  async setP2pReachable(device: string, reachable: boolean): Promise<void> {
    if (reachable) this.#unreachable.delete(device);
    else this.#unreachable.add(device);
    await this.#applyP2p(device);
  }

  /**
   * Checks every stamp in memory against its writer's progress, and that each request of a driver was done and completed once.
   * The check stops the machine, in the order in which a migration does, and lets it run on afterwards.
   */
  async audit(): Promise<StampAudit> {
    const requests = await this.vcpus.drainDrivers();
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
      for (const { vfio } of this.devices) {
        const trail = await vfio.stamps();
        if (trail !== null) trails.push(trail);
      }
      return withRequests(this.#checkTrails(trails), requests);
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
    await this.#served?.[Symbol.asyncDispose]();
    this.#shared?.[Symbol.dispose]();
  }

  /** Accesses to registers, by drivers on vCPUs. */
  #mmio(): MmioOperations {
    const vfio = (device: string): WorkloadDevice => {
      const found = this.devices.find(({ id }) => id === device);
      if (found === undefined) throw new Error(`a driver of '${device}', which there is not`);
      return found.vfio;
    };
    return {
      async read({ device, region, offset }) {
        return Buffer.from(await vfio(device).regionRead(region, offset, 4)).readUInt32LE();
      },
      async write({ device, region, writes }) {
        for (const { offset, value } of writes) {
          const data = new Uint8Array(4);
          new DataView(data.buffer).setUint32(0, value, true);
          await vfio(device).regionWrite(region, offset, data);
        }
      },
      counters: ({ device }) => vfio(device).counters(),
    };
  }

  /** Maps RAM in an IOAS of its own. */
  async #mapRam(iommufd: Iommufd): Promise<ObjectId> {
    const ioas = await iommufd.allocIoas();
    for (const { firstPage, pages, arena, arenaPage, writeable } of this.memory.regions) {
      const span = { arena: this.memory.arenas[arena], offset: arenaPage * PAGE_SIZE, length: pages * PAGE_SIZE };
      await iommufd.map(ioas, span, { iova: iovaOf(firstPage), readable: true, writeable });
    }
    return ioas;
  }

  /** Devices in other processes: behind an iommufd of their own, which shows them RAM. */
  async #openServed(): Promise<void> {
    const served = this.#description.devices.filter(isServed);
    if (served.length === 0) return;
    if (this.#served === undefined) throw new Error("the machine has devices in other processes, and no way to them");
    const iommufd = await this.#served.openIommufd();
    const ioas = await this.#mapRam(iommufd);
    for (const { id } of served) {
      const vfio = await this.#served.openDevice(id);
      const deviceId = await vfio.bind(iommufd);
      await vfio.attach(ioas);
      this.devices.push({ id, model: vfio.model, vfio, iommufd, deviceId, ioas, mdev: false });
    }
    const order = this.#description.devices.map(({ id }) => id);
    this.devices.sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
  }

  #isServed(id: string): boolean {
    return this.#description.devices.some((device) => device.id === id && isServed(device));
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
      // The last epoch of a device in another process is its own: which number it took, it knows.
      const own = this.#isServed(trail.writer)
        ? trail.epochs.at(-1)
        : trail.epochs.find(({ incarnation }) => incarnation === this.#incarnation);
      written[trail.writer] = own === undefined ? 0 : trail.lastSequence - own.firstSequence + 1;
    }
    return { stamps: { checked, problems }, written };
  }

  /** Tells the devices' ports what {@link mayP2p} says of this target. */
  async #applyP2p(target: string): Promise<void> {
    const { inFlight, p2p } = this.host;
    if (this.#isServed(target)) return;
    const to = this.host.slot(target).port;
    for (const { id } of await this.host.devices()) {
      if (id !== target) await p2p.set(inFlight, this.host.slot(id).port, to, this.mayP2p(id, target));
    }
  }

  async #startFeeder(): Promise<void> {
    for (const { id, vfio } of this.devices) {
      // Who serves a device sees to its feed, too.
      if (this.#isServed(id)) continue;
      const { udpPort } = await vfio.counters();
      const rate = this.#description.devices.find((device) => device.id === id)?.load.rate ?? 0;
      if (udpPort === undefined || rate === 0) continue;
      this.#feeder ??= new Feeder();
      await this.#feeder.feed(udpPort, rate);
    }
  }
}

/** Drivers of the devices that take requests, each on a vCPU. */
function driversOf({ devices, vcpus }: MachineDescription, layout: WorkloadLayout): PostedDriver[] {
  return devices
    .flatMap((device) => {
      const model = drivenModel(device);
      return model === undefined ? [] : [{ device, model }];
    })
    .map(({ device: { id, load }, model }, index) => ({
      device: id,
      model,
      vcpu: index % vcpus.count,
      rate: load.rate,
      buffers: layout.devices.get(id)?.buffers ?? [],
    }));
}

function withRequests(audit: StampAudit, requests: readonly RequestReport[]): StampAudit {
  if (requests.length === 0) return audit;
  const completed = requests.map(({ device, completedHere }) => [device, completedHere] as const);
  return {
    ...audit,
    requests: {
      checked: requests.reduce((sum, { queued }) => sum + queued, 0),
      problems: requests.flatMap(({ device, problems }) => problems.map((problem) => ({ owner: device, ...problem }))),
    },
    written: { ...audit.written, ...Object.fromEntries(completed) },
  };
}
