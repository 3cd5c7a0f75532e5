import { closeSync, copyFileSync, openSync, writeFileSync } from "node:fs";
import { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import { loggingRanges } from "../../../src/bitmap/ranges.js";
import type { DeviceModel, DmaFault } from "../../../src/devices/model.js";
import { createModel } from "../../../src/devices/models.js";
import { completeOptions, type OptionValue } from "../../../src/devices/servable.js";
import { SERVABLE_MODELS, servableModel } from "../../../src/devices/servable-models.js";
import { createSharedMemory } from "../../../src/devices/shared-memory.js";
import type { ReplaySchedule } from "../../../src/host/replay-schedule.js";
import { PAGE_SIZE } from "../../../src/memory/address.js";
import { mapAnonymousOver } from "../../../src/sys/mmap.js";
import { isErrno } from "../../../src/uapi/errno.js";
import type { DmaChannel } from "../../../src/vfio-user/server/dma-channel.js";
import { ServedDevice } from "../../../src/vfio-user/server/served-device.js";
import { Finding } from "../player.js";
import { LOCAL_BYTES } from "./dma-engine-script.js";
import { BAR_PAGE, BUS_PAGES, FILE_BYTES, REGIONS, type Region } from "./layout.js";
import { DISK_BLOCKS } from "./nvme-script.js";
import type { RegionWrite } from "./operation.js";

/** Those that can be served, and the one that can't. */
export const GUEST_MODELS: readonly string[] = [...SERVABLE_MODELS.map(({ name }) => name), "replay"];

/** DMA in the shortest slice that there is: a command of 512 KiB, its PRP lists of an entry a page, and its completion. */
const MAX_DMA_PER_SLICE = 400;

const DISK_BYTES = DISK_BLOCKS * 512;
/** What a page holds that its device has not written. */
const PATTERN = 0x5a;
const USER = { name: "the fuzzer", announces: false };

/** All memory has a file: the client is asked for none. */
const NO_CHANNEL = {} as DmaChannel;

const OPTIONS: Readonly<Record<string, Readonly<Record<string, OptionValue>>>> = {
  mlx5: { rate: 100_000, memory: LOCAL_BYTES, incarnation: 1 },
  nic: { rate: 100_000, memory: LOCAL_BYTES, incarnation: 1 },
  blk: { rate: 100_000, memory: LOCAL_BYTES, incarnation: 1 },
  vgpu: { rate: 100_000, vram: LOCAL_BYTES, incarnation: 1 },
  "dma-engine": { memory: LOCAL_BYTES },
};

interface Mapped extends Region {
  readonly fd: number;
}

/** The device's own log, as it must be: what was written since it was last read. */
interface Log {
  readonly granule: number;
  readonly ranges: readonly { readonly page: number; readonly pages: number }[] | null;
  readonly written: Set<number>;
}

/**
 * A device in a server, without the socket, and the memory of its guest. It watches each DMA: what the device may write,
 * what it has written, byte by byte, and how much it does at once.
 */
export class Side implements AsyncDisposable {
  readonly device: ServedDevice;
  readonly directory: string;
  /** The disk's file, of a device that has one. */
  readonly disk: string | undefined;
  /** All of the guest's memory, and what it must hold. */
  readonly memory: Uint8Array;
  readonly #expected: Uint8Array;
  readonly #file: number;
  readonly #bar: Mapped | undefined;
  #mapped = new Set<Mapped>();
  #log: Log | null = null;
  #accesses = 0;
  #during: { after: number; writes: readonly RegionWrite[] } | undefined;
  #finding: string | undefined;

  private constructor(
    device: ServedDevice,
    directory: string,
    disk: string | undefined,
    memory: ReturnType<typeof createSharedMemory>,
  ) {
    this.device = device;
    this.directory = directory;
    this.disk = disk;
    this.memory = memory.memory;
    this.#file = memory.memoryFile;
    this.#expected = new Uint8Array(FILE_BYTES);
    const [local] = device.model.mappable ?? [];
    if (local !== undefined) {
      const info = device.model.info.regions.find(({ index }) => index === local.region);
      const area = local.areas?.[0] ?? { offset: 0, bytes: info?.bytes ?? 0 };
      this.#bar = {
        page: BAR_PAGE,
        pages: area.bytes / PAGE_SIZE,
        filePage: (local.offset + area.offset) / PAGE_SIZE,
        readable: true,
        writeable: true,
        fd: local.fd,
      };
    }
    this.#watch();
    for (let region = 0; region < REGIONS.length; region++) this.map(region);
    if (this.#bar !== undefined) this.#map(this.#bar);
  }

  /** @param from whose memory and disk it begins with a copy of */
  static async start(name: string, directory: string, number: number, from?: Side): Promise<Side> {
    const disk = name === "nvme" ? `${directory}/disk-${number}` : undefined;
    if (disk !== undefined) {
      if (from?.disk === undefined) writeFileSync(disk, Buffer.alloc(DISK_BYTES, 1));
      else copyFileSync(from.disk, disk);
    }
    let side: Side | undefined;
    let failure: string | undefined;
    const device = await ServedDevice.start({
      id: name,
      model: makeModel(name, disk),
      dma: "auto",
      onFailure: (reason) => {
        if (side === undefined) failure = reason;
        else side.note(`the device has failed: ${reason}`);
      },
    });
    side = new Side(device, directory, disk, createSharedMemory("fuzzed guest", FILE_BYTES));
    if (failure !== undefined) side.note(failure);
    if (from === undefined) side.memory.fill(PATTERN);
    else {
      side.memory.set(from.memory);
      side.#mapped = new Set(side.#mapped);
      for (const [region, { page }] of REGIONS.entries()) if (!from.isMapped(page)) side.unmap(region);
    }
    side.#expected.set(side.memory);
    return side;
  }

  /** Something is wrong: it is thrown when the operation under way has ended. */
  note(what: string): void {
    this.#finding ??= what;
  }

  /** @throws Finding */
  check(): void {
    if (this.#finding !== undefined) throw new Finding(this.#finding);
  }

  isMapped(page: number): boolean {
    return [...this.#mapped].some((region) => region.page === page);
  }

  map(region: number): void {
    const given = REGIONS[region];
    if (!this.isMapped(given.page)) this.#map({ ...given, fd: this.#file });
  }

  unmap(region: number): void {
    const { page } = REGIONS[region];
    const found = [...this.#mapped].find((mapped) => mapped.page === page);
    if (found === undefined) return;
    this.#mapped.delete(found);
    this.device.memory.unmap(found.page, found.pages);
  }

  /** The guest's own store. What lies in no region of its is left out. */
  fill(address: number, data: Uint8Array): void {
    this.#eachPart(address, data.byteLength, (at, from, bytes) => {
      this.memory.set(data.subarray(from, from + bytes), at);
      this.#expected.set(data.subarray(from, from + bytes), at);
    });
  }

  peek(address: number, bytes: number): Uint8Array {
    const found = new Uint8Array(bytes);
    this.#eachPart(address, bytes, (at, to, count) => found.set(this.memory.subarray(at, at + count), to));
    return found;
  }

  write({ region, offset, data }: RegionWrite): void {
    this.device.contained.regionWrite(region, offset, data.slice());
  }

  read(region: number, offset: number, bytes: number): Uint8Array {
    const data = new Uint8Array(bytes);
    this.device.contained.regionRead(region, offset, data);
    return data;
  }

  /** So many of the shortest slices; false where the device has nothing more to do. */
  work(slices: number): boolean {
    for (let slice = 0; slice < slices; slice++) {
      this.#accesses = 0;
      const wait = this.device.run(0);
      if (this.#accesses > MAX_DMA_PER_SLICE) this.note(`${this.#accesses} DMA in a slice`);
      if (wait === undefined || wait > 0) return false;
    }
    return true;
  }

  /** Registers are written in the middle of a DMA, by another CPU. */
  during(after: number, writes: readonly RegionWrite[]): void {
    if (this.device.model.registersDuringDma === true) this.#during = { after, writes };
  }

  /** No register is written in the middle of a DMA but those of {@link during} from now on. */
  calm(): void {
    this.#during = undefined;
  }

  async reset(): Promise<void> {
    await this.device.movement.reset(USER);
    this.#log = null;
  }

  /** Starts the log; where it is on, reads it to the end and stops it. */
  async toggleLog(everything: boolean, pageSize: number): Promise<void> {
    const limits = this.device.model.info.dmaLogging;
    if (limits === null) return;
    if (this.#log !== null) {
      await this.checkLog();
      await this.device.logging.stop(USER);
      this.#log = null;
      return;
    }
    const end = Math.min(BUS_PAGES - pageSize / PAGE_SIZE, 2 ** (limits.addressWidth - 12));
    const mapped = REGIONS.filter((region) => region.page + region.pages <= end);
    const stretches = mapped.map(({ page, pages }) => ({ iova: BigInt(page) << 12n, length: BigInt(pages) << 12n }));
    const ranges = loggingRanges(stretches, pageSize, limits.maxRanges);
    try {
      const granule = await this.device.logging.start(pageSize, everything ? [] : ranges, USER);
      const logged = ranges.map(({ iova, length }) => ({ page: Number(iova >> 12n), pages: Number(length >> 12n) }));
      this.#log = { granule, ranges: everything ? null : logged, written: new Set() };
    } catch (error) {
      // Something is mapped behind what the device can log.
      if (!everything || !isErrno(error, "EOPNOTSUPP")) throw error;
    }
  }

  /** The log tells of the pages that were written since it was last read, by its granule, and of no others. */
  async checkLog(): Promise<void> {
    const log = this.#log;
    if (log === null) return;
    const perGranule = log.granule / PAGE_SIZE;
    const granules = new Set([...log.written].map((page) => Math.floor(page / perGranule)));
    for (const { page, pages } of REGIONS) {
      if (page + pages >= BUS_PAGES) continue;
      const query = { iova: BigInt(page) << 12n, length: BigInt(pages) << 12n, pageSize: PAGE_SIZE };
      const into = new DirtyBitmap({ ...query, granule: PAGE_SIZE });
      await this.device.logging.report({ ...query, into }, USER);
      for (let i = 0; i < pages; i++) {
        const isLogged =
          log.ranges === null ||
          log.ranges.some((range) => {
            const first = Math.floor(range.page / perGranule) * perGranule;
            return page + i >= first && page + i < Math.ceil((range.page + range.pages) / perGranule) * perGranule;
          });
        const expected = isLogged && granules.has(Math.floor((page + i) / perGranule));
        // A granule that two regions share was taken with the first of them.
        const shared = perGranule > 1;
        if (into.get(i) !== expected && !(shared && expected)) {
          this.note(`page ${page + i} is ${into.get(i) ? "" : "not "}in the log (granule ${log.granule})`);
        }
      }
    }
    log.written.clear();
  }

  /** The guest's memory is what it, and its device, have stored there. */
  checkMemory(): void {
    if (Buffer.compare(this.memory, this.#expected) === 0) return;
    const at = this.memory.findIndex((byte, i) => byte !== this.#expected[i]);
    this.note(`byte ${at % PAGE_SIZE} of page ${Math.floor(at / PAGE_SIZE)} of the file was written by nobody`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.device[Symbol.dispose]();
    mapAnonymousOver(this.memory);
    closeSync(this.#file);
  }

  #map(region: Mapped): void {
    this.#mapped.add(region);
    const fd = openSync(`/proc/self/fd/${region.fd}`, "r+");
    const { page, pages, readable, writeable, filePage } = region;
    this.device.memory.map(
      { page, pages, readable, writeable, offset: filePage * PAGE_SIZE, fileIo: false },
      fd,
      NO_CHANNEL,
    );
    if (!this.device.logging.covers({ page, pages })) this.#log = null;
  }

  #watch(): void {
    const { memory } = this.device;
    const write = memory.write.bind(memory);
    const read = memory.read.bind(memory);
    memory.write = (page, offset, source, from, bytes) => {
      this.#access(page, offset, from, bytes, source);
      const fault = write(page, offset, source, from, bytes);
      this.#answered(page, true, fault);
      if (fault !== null) return fault;
      this.#log?.written.add(page);
      const region = this.#regionOf(page);
      if (region === undefined || region === this.#bar) return null;
      const at = (region.filePage + page - region.page) * PAGE_SIZE + offset;
      this.#expected.set(this.memory.subarray(at, at + bytes), at);
      return null;
    };
    memory.read = (page, offset, target, to, bytes) => {
      this.#access(page, offset, to, bytes, target);
      const fault = read(page, offset, target, to, bytes);
      this.#answered(page, false, fault);
      return fault;
    };
  }

  #access(page: number, offset: number, at: number, bytes: number, buffer: Uint8Array): void {
    this.#accesses++;
    const isWhole = [page, offset, at, bytes].every((value) => Number.isSafeInteger(value) && value >= 0);
    if (!isWhole || bytes === 0 || offset + bytes > PAGE_SIZE || at + bytes > buffer.byteLength) {
      this.note(`a DMA of ${bytes} bytes at ${offset} of page ${page}, from ${at} of ${buffer.byteLength} bytes`);
    }
    const during = this.#during;
    if (during === undefined || during.after-- > 0) return;
    this.#during = undefined;
    for (const each of during.writes) this.write(each);
  }

  #answered(page: number, isWrite: boolean, fault: DmaFault | null): void {
    const region = this.#regionOf(page);
    const may = region !== undefined && (isWrite ? region.writeable : region.readable);
    if (may !== (fault === null))
      this.note(`a DMA to page ${page} was ${fault ?? "done"}, which may${may ? "" : " not"} be`);
  }

  #regionOf(page: number): Mapped | undefined {
    for (const region of this.#mapped) if (page >= region.page && page < region.page + region.pages) return region;
    return undefined;
  }

  #eachPart(address: number, bytes: number, part: (at: number, from: number, bytes: number) => void): void {
    for (let done = 0; done < bytes; ) {
      const page = Math.floor((address + done) / PAGE_SIZE);
      const offset = (address + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, bytes - done);
      const region = REGIONS.find((each) => page >= each.page && page < each.page + each.pages);
      if (region !== undefined) part((region.filePage + page - region.page) * PAGE_SIZE + offset, done, count);
      done += count;
    }
  }
}

function makeModel(name: string, disk: string | undefined): DeviceModel {
  if (name !== "replay") {
    const servable = servableModel(name);
    const options = disk === undefined ? OPTIONS[name] : { file: disk, serial: "FUZZ" };
    return servable.create(completeOptions(servable, options), { id: name, incoming: true });
  }
  const dmaLogging = { pageSizes: [4096], maxRanges: 8, addressWidth: 52, readableWhen: "always" as const };
  return createModel(
    {
      model: "replay",
      id: name,
      iommu: "none",
      load: { rate: 0, footprint: 0 },
      p2pTargets: [],
      trace: "none",
      dmaLogging,
    },
    { incarnation: 1, seed: 1, buffers: [], p2p: [], replay: TRACE, ...createSharedMemory("replay-bar2", LOCAL_BYTES) },
  );
}

/** A run of 50 ms over pages of which some are not mapped. */
const TRACE: ReplaySchedule = (() => {
  const pages = [0x100, 0x13f, 0x140, 0x15f, 0x100, 0x123, 0x180];
  const shared = new Uint32Array(new SharedArrayBuffer(4 * pages.length));
  shared.set(pages);
  const writes = new Uint32Array(new SharedArrayBuffer(8));
  writes.set([4, pages.length]);
  const endsUs = new Float64Array(new SharedArrayBuffer(16));
  endsUs.set([1000, 5000]);
  return { pages: shared, writes, endsUs };
})();
