import { closeSync, fstatSync, statfsSync } from "node:fs";
import type { DmaFault, DmaPort } from "../../devices/model.js";
import { UsageError } from "../../errors.js";
import { hex, iovaOf, PAGE_SIZE, type PageNumber, pageOf } from "../../memory/address.js";
import { type FilePiece, FileSpace } from "../../memory/file-space.js";
import { IntervalMap } from "../../memory/interval-map.js";
import { mayWrite } from "../../sys/fd.js";
import { isSealedAgainstShrinking } from "../../sys/memfd.js";
import type { DIRTMAP_WRITE_PATH } from "../../uapi/vfio-user.js";
import { type Backing, FileBacking, MappedBacking, MessageBacking, SharedFile } from "./backing.js";
import { type DmaChannel, MAX_DMA_BYTES } from "./dma-channel.js";
import { refusal } from "./refusal.js";

/**
 * Regions at a time (max_dma_maps). Each may split the process's own mappings twice, of which Linux allows 65530
 * (vm.max_map_count).
 */
export const MAX_DMA_MAPS = 16384;

/** include/uapi/linux/magic.h: a file of /proc. */
const PROC_SUPER_MAGIC = 0x9fa0;

const MAP = "VFIO_USER_DMA_MAP";
const UNMAP = "VFIO_USER_DMA_UNMAP";

/**
 * The server's way to the client's memory. `auto`: by the descriptors that the client sent, if any; `messages`: always by asking
 * the client, which then sees every write.
 */
export type DmaMode = "auto" | "messages";

/** What a client maps. Pages, and bytes in its file. */
export interface DmaRegion {
  readonly page: PageNumber;
  readonly pages: number;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** Where in the file the region begins. */
  readonly offset: number;
  /** The client wants its file read and written, not mapped: /proc/PID/mem, for one, can't be. */
  readonly fileIo: boolean;
}

/** How the device's writes reach memory: as each region was given, or always by asking the client. */
export type WritePath = keyof typeof DIRTMAP_WRITE_PATH;

/** A part of a region that is reached in one way. */
interface Piece {
  readonly page: PageNumber;
  readonly pages: number;
  readonly region: MappedRegion;
  readonly backing: Backing;
  /** The same memory by asking the client, who sees each write. */
  readonly asked: MessageBacking;
}

interface MappedRegion extends DmaRegion {
  readonly kind: "mapped" | "file" | "messages";
  release(): void;
}

/** Counted since the server began. */
export interface DmaCounts {
  writes: number;
  bytesWritten: number;
  reads: number;
  bytesRead: number;
  faults: number;
}

/** Pages that are rewritten at a time. */
const REWRITTEN_PAGES = MAX_DMA_BYTES / PAGE_SIZE;

/**
 * The memory of the client, as far as it has given it to the server: a device's way to it. A DMA runs to its end inside a
 * call, on the thread that also unmaps: no unmapping meets one in flight, and a mark in the log follows its store before
 * anyone can read the log.
 */
export class ClientMemory implements DmaPort {
  /** The device's own log, while DMA logging is on. */
  log: { mark(page: PageNumber): void } | null = null;
  readonly counts: DmaCounts = { writes: 0, bytesWritten: 0, reads: 0, bytesRead: 0, faults: 0 };
  /** Where `messages`, reads still go to the memory as it was given: the client need not see those. */
  writePath: WritePath = "direct";
  /** Writes that go by message may happen as late as {@link settle}: while the model works, if it allows that. */
  posts = false;
  /** Pages of writes that may not have happened. */
  readonly #posted = new Set<PageNumber>();
  /** To the client, whether or not it has mapped anything; null: there is none. */
  channel: DmaChannel | null = null;
  readonly #mode: DmaMode;
  readonly #space = new FileSpace();
  readonly #pieces = new IntervalMap<PageNumber, Piece>();
  readonly #regions = new IntervalMap<PageNumber, MappedRegion>();
  /** Files that are read and written, by device and inode number and by how they were opened. */
  readonly #files = new Map<string, SharedFile>();
  /** The piece that was used last: a device uses the same buffers again and again. */
  #first = 0;
  #end = 0;
  #last: Piece | undefined;

  constructor(mode: DmaMode) {
    this.#mode = mode;
  }

  write(page: PageNumber, offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    if ((page < this.#first || page >= this.#end) && !this.#find(page)) return this.#fault("not-mapped");
    const { region, backing, asked } = this.#last as Piece;
    if (!region.writeable) return this.#fault("not-writeable");
    const at = (page - this.#first) * PAGE_SIZE + offset;
    const fault =
      this.writePath === "direct"
        ? backing.write(at, source, from, bytes)
        : this.posts
          ? this.#post(page, asked.post(at, source, from, bytes))
          : asked.write(at, source, from, bytes);
    if (fault !== null) return this.#fault(fault);
    this.log?.mark(page);
    this.counts.writes++;
    this.counts.bytesWritten += bytes;
    return null;
  }

  read(page: PageNumber, offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    if ((page < this.#first || page >= this.#end) && !this.#find(page)) return this.#fault("not-mapped");
    const { region, backing } = this.#last as Piece;
    if (!region.readable) return this.#fault("not-readable");
    if (this.#posted.size > 0 && this.#posted.has(page)) this.settle();
    const fault = backing.read((page - this.#first) * PAGE_SIZE + offset, target, to, bytes);
    if (fault !== null) return this.#fault(fault);
    this.counts.reads++;
    this.counts.bytesRead += bytes;
    return null;
  }

  /** See {@link DmaPort.settle}. A write that the client has refused is counted as a fault. */
  settle(): DmaFault | null {
    if (this.#posted.size === 0) return null;
    this.#posted.clear();
    const fault = this.channel?.settle() ?? null;
    return fault === null ? null : this.#fault(fault);
  }

  /**
   * Has the client write what pages hold over itself, as many at a time as a message takes. Returns the fault, or null; null, too,
   * where the client has written the memory itself all along. Neither counted nor logged: nothing changes.
   */
  rewrite(page: PageNumber, pages: number): DmaFault | null {
    let fault: DmaFault | null = null;
    for (let next = page; next < page + pages && fault === null; ) {
      const piece = this.#pieces.at(next)?.value;
      if (piece === undefined) {
        fault = "not-mapped";
        break;
      }
      const { region, backing, asked } = piece;
      const count = Math.min(page + pages, piece.page + piece.pages, next + REWRITTEN_PAGES) - next;
      if (region.kind !== "messages") {
        const [offset, bytes] = [(next - piece.page) * PAGE_SIZE, count * PAGE_SIZE];
        fault = region.writeable
          ? (backing.read(offset, this.#rewritten, 0, bytes) ?? asked.post(offset, this.#rewritten, 0, bytes))
          : "not-writeable";
      }
      next += count;
    }
    const refused = this.channel?.settle() ?? null;
    return fault ?? refused;
  }
  readonly #rewritten = new Uint8Array(REWRITTEN_PAGES * PAGE_SIZE);

  /** True for pages that are all reached without asking the client. */
  isHere(page: PageNumber, pages: number): boolean {
    for (let next = page; next < page + pages; ) {
      const region = this.#regions.at(next)?.value;
      if (region === undefined || region.kind === "messages") return false;
      next = region.page + region.pages;
    }
    return true;
  }

  /** The client has done a write of the device's itself: it counts, and is in the log. */
  noteWrite(address: bigint, bytes: number): void {
    const last = pageOf(address + BigInt(bytes) - 1n);
    for (let page = pageOf(address); page <= last; page++) this.log?.mark(page);
    this.counts.writes++;
    this.counts.bytesWritten += bytes;
  }

  /** How many regions there are. */
  get size(): number {
    return this.#regions.size;
  }

  /** The regions, by ascending address. */
  regions(): DmaRegion[] {
    return Array.from(this.#regions, ({ value }) => value);
  }

  /**
   * @param fd the file that holds the region, or undefined: then the client is asked. Taken over in any case.
   * @param channel to the client
   * @throws UapiError EEXIST for what overlaps, ENOSPC for one region too many, EINVAL for a file that is no memory or too
   * short, and mmap's errno
   */
  map(region: DmaRegion, fd: number | undefined, channel: DmaChannel): void {
    let owned = fd;
    try {
      const { page, pages } = region;
      const what = `map ${hex(pages * PAGE_SIZE)} bytes at ${hex(iovaOf(page))}`;
      const other = this.#regions.firstIn(page, page + pages - 1);
      if (other !== undefined) {
        throw refusal("EEXIST", MAP, `${what}: there is a region at ${hex(iovaOf(other.start))}`, "unmap it first");
      }
      if (this.#regions.size >= MAX_DMA_MAPS) {
        throw refusal("ENOSPC", MAP, what, `a client may have ${MAX_DMA_MAPS} regions`);
      }
      if (fd !== undefined) checkFile(fd, region, what);
      if (fd === undefined || this.#mode === "messages") this.#addMessages(region, channel);
      else if (!region.fileIo && mayWrite(fd) && isSealedAgainstShrinking(fd) && this.#addMapped(region, fd, channel))
        return;
      else {
        this.#addFile(region, fd, channel);
        owned = undefined;
      }
    } finally {
      if (owned !== undefined) closeSync(owned);
    }
  }

  /**
   * Lets go of a region. No DMA to it is in flight when this returns: see the class.
   * @throws UapiError ENOENT where nothing is mapped there, EINVAL for what is not exactly one region
   */
  unmap(page: PageNumber, pages: number): void {
    const entry = this.#regions.firstIn(page, page + pages - 1);
    const what = `unmap ${hex(pages * PAGE_SIZE)} bytes at ${hex(iovaOf(page))}`;
    if (entry === undefined) throw refusal("ENOENT", UNMAP, what, "nothing is mapped there");
    if (entry.start !== page || entry.value.pages !== pages) {
      throw refusal(
        "EINVAL",
        UNMAP,
        what,
        `unmap whole regions: ${hex(entry.value.pages * PAGE_SIZE)} at ${hex(iovaOf(entry.start))}`,
      );
    }
    this.#remove(entry.value);
  }

  /** True where exactly this region is mapped. */
  has(page: PageNumber, pages: number): boolean {
    const entry = this.#regions.at(page);
    return entry?.start === page && entry.value.pages === pages;
  }

  /** Lets go of all regions: VFIO_USER_F_DMA_UNMAP_ALL, or the client has gone. */
  clear(): void {
    for (const { value } of [...this.#regions]) this.#remove(value);
  }

  [Symbol.dispose](): void {
    this.clear();
    this.#space[Symbol.dispose]();
  }

  #post(page: PageNumber, fault: DmaFault | null): DmaFault | null {
    if (fault === null) this.#posted.add(page);
    return fault;
  }

  #find(page: PageNumber): boolean {
    const piece = this.#pieces.at(page)?.value;
    if (piece === undefined) return false;
    this.#last = piece;
    this.#first = piece.page;
    this.#end = piece.page + piece.pages;
    return true;
  }

  #fault(fault: DmaFault): DmaFault {
    this.counts.faults++;
    return fault;
  }

  #addMessages(region: DmaRegion, channel: DmaChannel): void {
    const backing = new MessageBacking(channel, iovaOf(region.page));
    this.#add({ ...region, kind: "messages", release: () => {} }, [{ pages: region.pages, backing }], channel);
  }

  /** False where there is no address space left: pread and pwrite will do. */
  #addMapped(region: DmaRegion, fd: number, channel: DmaChannel): boolean {
    // The size of the file's pages: of huge ones, only whole ones can be mapped.
    const alignment = Math.max(PAGE_SIZE, fstatSync(fd).blksize);
    let pieces: FilePiece[];
    try {
      pieces = this.#space.map(fd, region.offset, region.pages * PAGE_SIZE, alignment);
    } catch (error) {
      if (error instanceof UsageError) return false;
      throw error;
    }
    this.#add(
      { ...region, kind: "mapped", release: () => this.#space.unmap(pieces, alignment) },
      pieces.map(({ arena, at, bytes }) => ({ pages: bytes / PAGE_SIZE, backing: new MappedBacking(arena.u8, at) })),
      channel,
    );
    return true;
  }

  /** Takes the descriptor over. */
  #addFile(region: DmaRegion, fd: number, channel: DmaChannel): void {
    const { dev, ino } = fstatSync(fd);
    const key = `${dev}:${ino}:${mayWrite(fd)}`;
    let file = this.#files.get(key);
    if (file === undefined) {
      file = new SharedFile(fd);
      this.#files.set(key, file);
    } else closeSync(fd);
    const shared = file;
    shared.use();
    const release = () => {
      if (shared.release()) this.#files.delete(key);
    };
    const backing = new FileBacking(shared, region.offset);
    this.#add({ ...region, kind: "file", release }, [{ pages: region.pages, backing }], channel);
  }

  #add(region: MappedRegion, parts: readonly { pages: number; backing: Backing }[], channel: DmaChannel): void {
    this.#regions.insert(region.page, region.page + region.pages - 1, region);
    let { page } = region;
    for (const { pages, backing } of parts) {
      const asked = new MessageBacking(channel, iovaOf(page));
      this.#pieces.insert(page, page + pages - 1, { page, pages, region, backing, asked });
      page += pages;
    }
  }

  #remove(region: MappedRegion): void {
    this.#end = 0;
    this.#last = undefined;
    this.#regions.delete(region.page);
    for (const { start } of this.#pieces.in(region.page, region.page + region.pages - 1)) this.#pieces.delete(start);
    region.release();
  }
}

/** @throws UapiError EINVAL for what is no regular file, or ends before the region does; EACCES for one that can't be written */
function checkFile(fd: number, { offset, pages, writeable, fileIo }: DmaRegion, what: string): void {
  const stat = fstatSync(fd);
  if (!stat.isFile()) throw refusal("EINVAL", MAP, `${what} from a descriptor that is no memory`, "send a memfd's");
  // Its files say nothing of their size; where there is nothing to read or write, the DMA faults.
  const isOfProc = fileIo && statfsSync(`/proc/self/fd/${fd}`).type === PROC_SUPER_MAGIC;
  if (!isOfProc && stat.size < offset + pages * PAGE_SIZE) {
    throw refusal("EINVAL", MAP, `${what} from ${hex(offset)} of a file of ${hex(stat.size)} bytes`, "it is too short");
  }
  if (writeable && !mayWrite(fd)) throw refusal("EACCES", MAP, `${what} to write, from a file that was opened to read`);
}
