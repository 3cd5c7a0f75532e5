import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { KernelDesigns } from "../host/designs.js";
import type {
  AttachedDevice,
  BitmapQuery,
  DataStream,
  DmaLoggingLimits,
  Machine,
  MigrationSupport,
  ObjectId,
  TrackingFlags,
  Vcpus,
  VfioDevice,
} from "../host/host.js";
import type { DeviceShape } from "../host/shape.js";
import { iovaOf, PAGE_SIZE, type PageNumber, pageOf } from "../memory/address.js";
import { createGuestMemory, type GuestMemory } from "../memory/guest-memory.js";
import type { ErrnoName } from "../uapi/errno.js";
import type { DeviceFeature, MigState } from "../uapi/vfio.js";
import { FakeIommufd, refuse } from "./fake-iommufd.test.helper.js";

/* A machine for tests of trackers and their reader. Devices write when a test says so. */

/** What a fake device is made with; each absent part is something that it lacks. */
export interface FakeDeviceOptions {
  readonly id: string;
  readonly model?: string;
  readonly mdev?: boolean;
  /** Devices with the same one can share an HWPT. */
  readonly iommu?: string;
  readonly iommuTracks?: boolean;
  readonly log?: Partial<DmaLoggingLimits>;
  /** The granule that it chooses, whatever it is asked for. */
  readonly chosenGranule?: number;
  readonly sharedTracker?: boolean;
  readonly migration?: MigrationSupport | null;
}

interface Log {
  readonly granule: number;
  readonly ranges: readonly { iova: bigint; length: bigint }[];
  /** Granule numbers. */
  readonly dirty: Set<number>;
}

/** A device with the uAPI's rules for DMA logging (drivers/vfio/vfio_main.c) and states that change at once. */
export class FakeVfioDevice implements VfioDevice {
  readonly id: string;
  readonly model: string;
  readonly regions = [];
  readonly irqs = [];
  readonly deviceId: ObjectId;
  readonly states: MigState[] = ["RUNNING"];
  /** Errors that the next reports answer with. */
  readonly failReports: ErrnoName[] = [];
  readonly failStarts: ErrnoName[] = [];
  readonly failStates: ErrnoName[] = [];
  readonly starts: Parameters<VfioDevice["startDmaLogging"]>[0][] = [];
  readonly reports: { iova: bigint; length: bigint }[] = [];
  readonly pinned = new Set<PageNumber>();
  readonly #options: FakeDeviceOptions;
  readonly #iommufd: FakeIommufd;
  #log: Log | null = null;

  constructor(options: FakeDeviceOptions, iommufd: FakeIommufd) {
    this.id = options.id;
    this.model = options.model ?? "fake";
    this.#options = options;
    this.#iommufd = iommufd;
    this.deviceId = iommufd.bindFake(
      options.mdev === true ? null : (options.iommu ?? "iommu0"),
      options.iommuTracks ?? true,
    );
  }

  get logging(): boolean {
    return this.#log !== null;
  }

  /** Writes one page. An mdev pins it first, and lets it go unless told to keep it. */
  write(page: PageNumber, { keepPinned = false } = {}): void {
    if (this.states.at(-1) !== "RUNNING") throw new Error(`${this.id} is not running`);
    if (!this.#iommufd.dma(this.deviceId, page)) throw new Error(`${this.id} can't reach page ${page}`);
    if (keepPinned) this.pinned.add(page);
    this.#mark(page);
  }

  #mark(page: PageNumber): void {
    const iova = iovaOf(page);
    if (this.#log?.ranges.some((range) => range.iova <= iova && iova < range.iova + range.length) !== true) return;
    this.#log.dirty.add(Math.floor((page * PAGE_SIZE) / this.#log.granule));
  }

  get #limits(): DmaLoggingLimits | null {
    const { log } = this.#options;
    return log === undefined
      ? null
      : { pageSizes: [PAGE_SIZE], maxRanges: 16, addressWidth: 52, readableWhen: "always", ...log };
  }

  async shape(): Promise<DeviceShape> {
    return { version: 1, model: this.model, stateVersion: 1, regions: [], irqs: [], config: null, facts: {} };
  }

  async regionRead(): Promise<never> {
    throw refuse("EINVAL", "read a region: it has none");
  }

  async regionWrite(): Promise<never> {
    throw refuse("EINVAL", "write a region: it has none");
  }

  async bind(): Promise<never> {
    throw refuse("EINVAL", "bind again");
  }

  async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    return this.#iommufd.attachFake(this.deviceId, ioasOrHwpt);
  }

  async detach(): Promise<never> {
    throw refuse("ENOTTY", "detach");
  }

  async reset(): Promise<void> {
    this.#log = null;
    this.states.push("RUNNING");
  }

  async supports(feature: DeviceFeature): Promise<boolean> {
    return feature.startsWith("DMA_LOGGING") ? this.#limits !== null : this.#options.migration !== null;
  }

  async migration(): Promise<MigrationSupport> {
    const { migration = { stopCopy: true, p2p: true, preCopy: false } } = this.#options;
    if (migration === null) throw refuse("ENOTTY", "ask for migration support");
    return migration;
  }

  async trackingFlags(): Promise<TrackingFlags> {
    return {
      tracksInternally: this.#options.log !== undefined,
      tracksThroughContainer: this.#options.sharedTracker === true,
    };
  }

  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return this.#limits;
  }

  async state(): Promise<MigState> {
    return this.states[this.states.length - 1];
  }

  async setState(next: MigState): Promise<DataStream | null> {
    const failure = this.failStates.shift();
    if (failure !== undefined) throw refuse(failure, `go to ${next}`);
    this.states.push(next);
    return null;
  }

  async dataSize(): Promise<number> {
    return 0;
  }

  async enablePrecopyInfoV2(): Promise<void> {}

  async startDmaLogging(args: Parameters<VfioDevice["startDmaLogging"]>[0]): Promise<number> {
    const failure = this.failStarts.shift();
    if (failure !== undefined) throw refuse(failure, "start logging");
    const limits = this.#limits;
    if (limits === null) throw refuse("ENOTTY", "start logging");
    const { pageSize, ranges } = args;
    if (this.#log !== null || ranges.length === 0) throw refuse("EINVAL", "start logging");
    if (ranges.length > limits.maxRanges) throw refuse("E2BIG", "start logging");
    const unit = BigInt(pageSize);
    ranges.forEach(({ iova, length }, index) => {
      const overlaps = ranges.some((r, i) => i !== index && r.iova < iova + length && iova < r.iova + r.length);
      if (iova % unit !== 0n || length % unit !== 0n || overlaps) throw refuse("EINVAL", "start logging");
    });
    this.starts.push(args);
    this.#log = { granule: this.#options.chosenGranule ?? pageSize, ranges, dirty: new Set() };
    return this.#log.granule;
  }

  /** Cleans each granule that the range touches, whole, and reports the part of it that lies in the range. */
  async reportDmaLogging({ iova, length, pageSize, into }: BitmapQuery): Promise<void> {
    const failure = this.failReports.shift();
    if (failure !== undefined) throw refuse(failure, "report");
    const log = this.#log;
    if (log === null || pageSize < PAGE_SIZE) throw refuse("EINVAL", "report");
    if (this.#limits?.readableWhen === "quiesced" && this.states.at(-1) === "RUNNING") throw refuse("EBUSY", "report");
    if (!log.ranges.some((r) => r.iova <= iova && iova + length <= r.iova + r.length)) throw refuse("EINVAL", "report");
    this.reports.push({ iova, length });
    for (const page of this.pinned) this.#mark(page);
    const unit = BigInt(log.granule);
    for (let granule = iova / unit; granule * unit < iova + length; granule++) {
      if (!log.dirty.delete(Number(granule))) continue;
      const from = granule * unit > iova ? granule * unit - iova : 0n;
      const to = (granule + 1n) * unit - iova;
      const first = Number(from / BigInt(pageSize));
      const end = Number(((to < length ? to : length) + BigInt(pageSize) - 1n) / BigInt(pageSize));
      into.setRange(first, end - first);
    }
  }

  async stopDmaLogging(): Promise<void> {
    if (this.#log === null) throw refuse("EINVAL", "stop logging");
    this.#log = null;
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** KVM's dirty log of vCPUs that write when a test says so. */
export class FakeVcpus implements Vcpus {
  readonly count = 1;
  readonly #dirty = new Set<PageNumber>();
  #logging = false;

  write(page: PageNumber): void {
    if (this.#logging) this.#dirty.add(page);
  }

  async pause(): Promise<void> {}
  async resume(): Promise<void> {}
  async saveState(): Promise<Uint8Array> {
    return new Uint8Array(0);
  }
  async loadState(): Promise<void> {}

  async startDirtyLog(): Promise<void> {
    if (this.#logging) throw refuse("EINVAL", "start the dirty log again");
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
  device(id: string): FakeVfioDevice;
}

/** A machine with all its RAM, and one peer's BAR, mapped in one IOAS that all devices are attached to. */
export async function fakeMachine(
  devices: readonly FakeDeviceOptions[],
  { bytes = 8 * 2 ** 20, designs }: { bytes?: number; designs?: (memory: GuestMemory) => KernelDesigns } = {},
): Promise<FakeMachine> {
  const memory = createGuestMemory(bytes);
  const iommufd = new FakeIommufd();
  const ioas = await iommufd.allocIoas();
  for (const { firstPage, pages, writeable } of memory.regions) {
    iommufd.mapFake(ioas, { iova: iovaOf(firstPage), length: BigInt(pages * PAGE_SIZE), writeable });
  }
  const bar = { iova: 0xe000_0000n, length: 0x1_0000n };
  iommufd.mapFake(ioas, { ...bar, writeable: true });
  const vfios = devices.map((options) => new FakeVfioDevice(options, iommufd));
  const attached: AttachedDevice[] = [];
  for (const [index, vfio] of vfios.entries()) {
    await vfio.attach(ioas);
    const { deviceId, id, model } = vfio;
    attached.push({ id, model, vfio, iommufd, deviceId, ioas, mdev: devices[index].mdev === true });
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
      const vfio = vfios.find((candidate) => candidate.id === id);
      if (vfio === undefined) throw new Error(`there is no device ${id}`);
      return vfio;
    },
    [Symbol.asyncDispose]: async () => {},
  };
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

/** The page that an address lies in, for tests that think in bytes. */
export const pageAt = (address: number): PageNumber => pageOf(BigInt(address));
