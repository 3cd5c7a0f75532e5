import type { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import type { KernelDesigns } from "../../../src/host/designs.js";
import type { AttachedDevice, Machine, ObjectId, Vcpus } from "../../../src/host/host.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../../../src/memory/address.js";
import { createArena } from "../../../src/memory/arena.js";
import { createGuestMemory, type GuestMemory } from "../../../src/memory/guest-memory.js";
import { UapiError } from "../../../src/uapi/errno.js";
import type { FakeDevice, FakeDeviceOptions } from "./device.js";
import { FakeHost, type FakeIommufd } from "./host.js";

/* A machine of a fake host's devices, and of vCPUs that write when a test says so. */

/** KVM's dirty log of vCPUs that write when a test says so. */
export class FakeVcpus implements Vcpus {
  readonly count = 1;
  readonly #dirty = new Set<PageNumber>();
  #logging = false;

  get logging(): boolean {
    return this.#logging;
  }

  write(page: PageNumber): void {
    if (this.#logging) this.#dirty.add(page);
  }

  async pause(): Promise<void> {}
  async resume(): Promise<void> {}
  async saveState(): Promise<Uint8Array> {
    return new Uint8Array(0);
  }
  async loadState(_state: Uint8Array): Promise<void> {}

  async startDirtyLog(): Promise<void> {
    if (this.#logging) throw new UapiError("EINVAL", { syscall: "fake", attempted: "start the dirty log again" });
    this.#logging = true;
  }

  async readAndClearDirtyLog({ firstPage, pages, into }: { firstPage: number; pages: number; into: DirtyBitmap }) {
    for (const page of this.#dirty) {
      if (page < firstPage || page >= firstPage + pages) continue;
      into.set(page - firstPage);
      this.#dirty.delete(page);
    }
  }

  async stopDirtyLog(): Promise<void> {
    this.#logging = false;
    this.#dirty.clear();
  }
}

/** A machine whose devices and vCPUs a test drives. */
export interface FakeMachine extends Machine {
  readonly iommufd: FakeIommufd;
  readonly vcpus: FakeVcpus;
  readonly ioas: ObjectId;
  /** Devices that peers can't reach. */
  readonly unreachable: Set<string>;
  device(id: string): FakeDevice;
  /** Maps guest memory for DMA: bytes at an IOVA that begin at a guest page. */
  map(area: { readonly iova: bigint; readonly length: bigint; readonly guestPage: PageNumber }): Promise<void>;
}

/** A machine with all its RAM, and one peer's BAR, mapped in one IOAS that all devices are attached to. */
export async function fakeMachine(
  devices: readonly FakeDeviceOptions[],
  { bytes = 8 * 2 ** 20, designs }: { bytes?: number; designs?: (memory: GuestMemory) => KernelDesigns } = {},
): Promise<FakeMachine> {
  const memory = createGuestMemory(bytes);
  const barMemory = createArena(0x1_0000);
  const host = new FakeHost(devices, memory.arenas, barMemory);
  const iommufd = await host.openIommufd();
  const ioas = await iommufd.allocIoas();
  for (const { firstPage, pages, arena, arenaPage, writeable } of memory.regions) {
    const span = { arena: memory.arenas[arena], offset: arenaPage * PAGE_SIZE, length: pages * PAGE_SIZE };
    await iommufd.map(ioas, span, { iova: iovaOf(firstPage), readable: true, writeable });
  }
  const bar = { iova: 0xe000_0000n, length: 0x1_0000n };
  const behindBar = { arena: barMemory, offset: 0, length: Number(bar.length) };
  await iommufd.map(ioas, behindBar, { iova: bar.iova, readable: true, writeable: true });

  const opened = new Map<string, FakeDevice>();
  const attached: AttachedDevice[] = [];
  for (const { id, mdev = false } of devices) {
    const vfio = await host.openDevice(id);
    const deviceId = await vfio.bind(iommufd);
    await vfio.attach(ioas);
    opened.set(id, vfio);
    attached.push({ id, model: vfio.model, vfio, iommufd, deviceId, ioas, mdev });
  }
  const unreachable = new Set<string>();
  return {
    memory,
    devices: attached,
    vcpus: new FakeVcpus(),
    peerMappings: [bar],
    ...(designs === undefined ? {} : { designs: designs(memory) }),
    mayP2p: (_initiator, target) => !unreachable.has(target),
    setP2pReachable: async (id, reachable) => {
      if (reachable) unreachable.delete(id);
      else unreachable.add(id);
    },
    iommufd,
    ioas,
    unreachable,
    device: (id) => {
      const vfio = opened.get(id);
      if (vfio === undefined) throw new Error(`there is no device ${id}`);
      return vfio;
    },
    map: async ({ iova, length, guestPage }) => {
      const region = memory.regions.find(
        ({ firstPage, pages }) => firstPage <= guestPage && guestPage < firstPage + pages,
      );
      if (region === undefined) throw new Error(`guest page ${guestPage} is no RAM`);
      const offset = (region.arenaPage + guestPage - region.firstPage) * PAGE_SIZE;
      const span = { arena: memory.arenas[region.arena], offset, length: Number(length) };
      await iommufd.map(ioas, span, { iova, readable: true, writeable: true });
    },
    [Symbol.asyncDispose]: async () => {},
  };
}

/** IOASes, and HWPTs made by hand, that an iommufd's users have made and not destroyed. */
export function madeAndLeft({ script }: FakeIommufd): { readonly ioases: ObjectId[]; readonly hwpts: ObjectId[] } {
  const destroyed = new Set(script.done("destroy").map(([id]) => id));
  const left = (...makers: string[]): ObjectId[] =>
    script.calls
      .filter(({ operation, result }) => makers.includes(operation) && !destroyed.has(result as ObjectId))
      .map(({ result }) => result as ObjectId);
  return { ioases: left("allocIoas"), hwpts: left("allocHwpt", "allocEmulatedIommu") };
}

/** What an iommufd's users have changed of attachments, of tracking and of what there is, a line each. */
export function changesOf({ script }: FakeIommufd): string[] {
  const ioases = new Set<unknown>(
    script.calls.filter(({ operation }) => operation === "allocIoas").map(({ result }) => result),
  );
  return script.calls.flatMap(({ operation, args: [id, what], result }) => {
    if (operation === "attachDevice")
      return [`attach ${id} to ${ioases.has(what) ? `IOAS ${what}` : `domain ${result}`}`];
    if (operation === "setDirtyTracking") return [`tracking of ${id} ${what === true ? "on" : "off"}`];
    return operation === "destroy" ? [`destroy ${id}`] : [];
  });
}

/** The guest pages that a bitmap of RAM marks, ascending; each arena begins where its first region does. */
export function markedPages(bitmap: { memory: Machine["memory"]; arenas: readonly Uint32Array[] }): PageNumber[] {
  return bitmap.memory.regions.flatMap(({ firstPage, pages, arena, arenaPage }) => {
    const found: PageNumber[] = [];
    for (let page = 0; page < pages; page++) {
      const bit = arenaPage + page;
      if (((bitmap.arenas[arena][bit >>> 5] >>> (bit & 31)) & 1) === 1) found.push(firstPage + page);
    }
    return found;
  });
}
