import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../memory/address.js";

/** Fewest past runs that are worth merging. */
const MERGE_AT = 4096;

/** A run of pages. */
interface Run {
  readonly firstPage: PageNumber;
  readonly pages: number;
}

interface Pins extends Run {
  count: number;
  /** One of the pins allows writing; then the whole run may be written until all are gone. */
  write: boolean;
}

/**
 * The pages that a device may have written because it has, or had, them pinned for writing: an mdev's own DMA logging.
 *
 * Reported are pages pinned at the time of the read, and pages pinned at any time since the last read or since
 * {@link start}: a page that was unpinned stays reportable until it is read. So pin, read, unpin, read, read reports
 * the page twice and then no more. Reads cost what is pinned or was, not what is mapped.
 */
export class PinLog {
  /** By `firstPage:pages`, since a range is unpinned as it was pinned. */
  readonly #pinned = new Map<string, Pins>();
  /** Unpinned or written without a pin since the last read; gathered only while {@link logging}. */
  #past: Run[] = [];
  /** Length at which {@link #past} is merged, so that it stays below twice its distinct runs however late it is read. */
  #mergeAt = MERGE_AT;
  #logging = false;

  get logging(): boolean {
    return this.#logging;
  }

  /** Begins to remember what is unpinned. Starting again forgets what was. */
  start(): void {
    this.#past = [];
    this.#logging = true;
  }

  stop(): void {
    this.#past = [];
    this.#logging = false;
  }

  pin(firstPage: PageNumber, pages: number, write: boolean): void {
    const key = `${firstPage}:${pages}`;
    const pins = this.#pinned.get(key);
    if (pins === undefined) {
      this.#pinned.set(key, { firstPage, pages, count: 1, write });
    } else {
      pins.count++;
      pins.write ||= write;
    }
  }

  /** Undoes one {@link pin} of exactly this run. False if there is none. */
  unpin(firstPage: PageNumber, pages: number): boolean {
    const key = `${firstPage}:${pages}`;
    const pins = this.#pinned.get(key);
    if (pins === undefined) return false;
    if (--pins.count > 0) return true;
    this.#pinned.delete(key);
    if (pins.write) this.wrote(firstPage, pages);
    return true;
  }

  /** Pages were written without a pin (vfio_dma_rw). */
  wrote(firstPage: PageNumber, pages: number): void {
    if (!this.#logging) return;
    const previous = this.#past.at(-1);
    if (previous !== undefined && previous.firstPage <= firstPage && endOf(previous) >= firstPage + pages) return;
    this.#past.push({ firstPage, pages });
    if (this.#past.length < this.#mergeAt) return;
    this.#past = merged(this.#past);
    this.#mergeAt = Math.max(MERGE_AT, 2 * this.#past.length);
  }

  /** Everything that is pinned now. */
  pinned(): readonly (Run & { readonly write: boolean })[] {
    return [...this.#pinned.values()];
  }

  /**
   * Adds to `into` what of pages [firstPage, firstPage + pages) was reportable, and forgets the unpinned ones there;
   * pages that are still pinned stay reportable. Granules are rounded outwards. Without `into` it only forgets.
   */
  readAndClear(range: { firstPage: PageNumber; pages: number; into?: DirtyBitmap }): void {
    const { into } = range;
    const end = range.firstPage + range.pages;
    for (const run of this.#pinned.values()) {
      if (run.write) mark(into, Math.max(run.firstPage, range.firstPage), Math.min(endOf(run), end));
    }
    const left: Run[] = [];
    for (const run of this.#past) {
      mark(into, Math.max(run.firstPage, range.firstPage), Math.min(endOf(run), end));
      if (run.firstPage < range.firstPage) {
        left.push({ firstPage: run.firstPage, pages: Math.min(endOf(run), range.firstPage) - run.firstPage });
      }
      if (endOf(run) > end) {
        const firstPage = Math.max(run.firstPage, end);
        left.push({ firstPage, pages: endOf(run) - firstPage });
      }
    }
    this.#past = left;
  }
}

/** The same pages in as few runs as can be, by ascending page. */
function merged(runs: readonly Run[]): Run[] {
  const result: { firstPage: PageNumber; pages: number }[] = [];
  for (const run of [...runs].sort((a, b) => a.firstPage - b.firstPage)) {
    const previous = result.at(-1);
    if (previous !== undefined && run.firstPage <= endOf(previous)) {
      previous.pages = Math.max(endOf(previous), endOf(run)) - previous.firstPage;
    } else {
      result.push({ ...run });
    }
  }
  return result;
}

function endOf({ firstPage, pages }: Run): PageNumber {
  return firstPage + pages;
}

/** Sets the granules of pages [from, to) that lie in the bitmap's range. */
function mark(into: DirtyBitmap | undefined, from: PageNumber, to: PageNumber): void {
  if (into === undefined || from >= to) return;
  const granule = BigInt(into.granule);
  const start = iovaOf(from) > into.iova ? iovaOf(from) - into.iova : 0n;
  const last = iovaOf(to) - 1n - into.iova;
  if (last < 0n || start >= into.length) return;
  const firstBit = Number(start / granule);
  const lastBit = Math.min(Number(last / granule), into.bits - 1);
  into.setRange(firstBit, lastBit - firstBit + 1);
}

/** The pages that bytes [iova, iova + length) touch. */
export function pagesOf(iova: bigint, length: bigint): { firstPage: PageNumber; pages: number } {
  const firstPage = Number(iova / BigInt(PAGE_SIZE));
  return { firstPage, pages: Number((iova + length - 1n) / BigInt(PAGE_SIZE)) - firstPage + 1 };
}
