import type { IovaRange, MapFlags, MemorySpan, ObjectId } from "../../host/host.js";
import { type Call, lastOf, refuse } from "../../host/iommufd-checks.js";
import { hex, type Iova, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import { holdsOf } from "../../memory/holds.js";
import { type Interval, IntervalMap } from "../../memory/interval-map.js";
import type { DmaMapping } from "./dma-mappings.js";
import type { Hwpt } from "./hwpt.js";
import type { VfioUserMemoryFile } from "./memory-file.js";

const PAGE = BigInt(PAGE_SIZE);

/** What devices reach: as much as the largest IOMMUs of today translate, 57 bits. */
export const APERTURE_LAST = (1n << 57n) - 1n;

/** What lies at an interval of IOVAs. */
export interface Area extends DmaMapping {
  /** Of the first mapping of this memory: a copy may be narrower, never wider. */
  readonly mayWrite: boolean;
  /** What the memory belongs to, where it was mapped from a file. */
  readonly file: VfioUserMemoryFile | null;
}

/** A stretch of memory to be mapped. */
export type Slice = Pick<Area, "span" | "mayWrite" | "file">;

/**
 * An I/O address space: what is mapped where. Areas are disjoint; while an HWPT shows them they are aligned to pages and lie
 * in the aperture, and every attached device maps exactly them.
 */
export class Ioas {
  readonly id: ObjectId;
  readonly areas = new IntervalMap<Iova, Area>();
  /** In the order of their making. */
  readonly hwpts = new Set<Hwpt>();
  hugePages = true;
  #allowed: readonly IovaRange[] = [];

  constructor(id: ObjectId) {
    this.id = id;
  }

  get alignment(): number {
    return this.hwpts.size > 0 || !this.hugePages ? PAGE_SIZE : 1;
  }

  get ranges(): IovaRange[] {
    return [{ start: 0n, last: this.#last }];
  }

  /** IOMMU_IOAS_ALLOW_IOVAS */
  allow(ranges: readonly IovaRange[], call: Call): void {
    const sorted = [...ranges].sort((a, b) => (a.start < b.start ? -1 : 1));
    for (const [i, { start, last }] of sorted.entries()) {
      if (start < 0n || last > U64_MAX) refuse("EOVERFLOW", call);
      if (start >= last) refuse("EINVAL", call, "end each range behind its start");
      if (i > 0 && sorted[i - 1].last >= start) refuse("EINVAL", call, "give ranges that don't overlap");
    }
    if (sorted.some(({ last }) => last > this.#last)) refuse("EADDRINUSE", call, "allow only what iovaRanges() lists");
    this.#allowed = sorted;
  }

  /** Checks what HWPTs need of the areas. @throws UapiError EADDRINUSE */
  checkFor(call: Call): void {
    for (const { start, last, value } of this.areas) {
      if (last > APERTURE_LAST) refuse("EADDRINUSE", call, `unmap ${hex(start)}, which devices can't reach`);
      if (start % PAGE !== 0n || (last + 1n) % PAGE !== 0n || value.span.offset % PAGE_SIZE !== 0) {
        refuse("EADDRINUSE", call, `unmap the mapping at ${hex(start)}, which is not aligned to ${PAGE_SIZE} bytes`);
      }
    }
    if (this.#allowed.some(({ last }) => last > APERTURE_LAST)) {
      refuse("EADDRINUSE", call, `disallow what lies behind ${hex(APERTURE_LAST)}`);
    }
  }

  /** Where slices of this length are to be mapped. @throws UapiError EINVAL, EOVERFLOW, EEXIST, ENOSPC, EPERM, EFAULT */
  place(slices: readonly Slice[], length: bigint, flags: MapFlags, call: Call): Iova {
    const alignment = BigInt(this.alignment);
    if (length === 0n || length % alignment !== 0n) {
      refuse("EINVAL", call, `give a length that is a multiple of ${alignment}, above 0`);
    }
    if (flags.iova !== undefined && flags.iova % alignment !== 0n) {
      refuse("EINVAL", call, `give an IOVA that is a multiple of ${alignment}`);
    }
    const start = flags.iova ?? this.#free(length, call);
    const last = lastOf(start, length, call);
    if (last > this.#last) refuse("EINVAL", call, "map only in what iovaRanges() lists");
    if (this.areas.firstIn(start, last) !== undefined) refuse("EEXIST", call, "unmap first: nothing is replaced");
    for (const { span, mayWrite } of slices) {
      if (flags.writeable && !mayWrite) refuse("EPERM", call, "map it writeable first, then copy it so");
      if (span.offset % Number(alignment) !== 0) {
        refuse("EINVAL", call, `give memory that starts at a multiple of ${alignment}`);
      }
      if (span.offset + span.length > span.arena.bytes) refuse("EFAULT", call, "give memory inside the arena");
    }
    return start;
  }

  insert(start: Iova, area: Area): void {
    this.areas.insert(start, start + BigInt(area.span.length) - 1n, area);
    holdsOf(area.span.arena).take();
  }

  remove({ start, value }: Interval<Iova, Area>): void {
    this.areas.delete(start);
    holdsOf(value.span.arena).release();
    value.file?.releaseIfClosed();
  }

  /** The mapped parts of [iova, last] from `iova` on up to the first hole; `whole` if there is none. */
  contiguous(iova: Iova, last: Iova): { parts: { area: Area; start: Iova; span: MemorySpan }[]; whole: boolean } {
    const parts: { area: Area; start: Iova; span: MemorySpan }[] = [];
    let expected = iova;
    for (const { start, last: areaLast, value: area } of this.areas.in(iova, last)) {
      if (start > expected) break;
      const end = areaLast < last ? areaLast : last;
      const offset = area.span.offset + Number(expected - start);
      parts.push({
        area,
        start: expected,
        span: { arena: area.span.arena, offset, length: Number(end - expected) + 1 },
      });
      expected = end + 1n;
    }
    return { parts, whole: expected > last };
  }

  get #last(): Iova {
    return this.hwpts.size > 0 ? APERTURE_LAST : U64_MAX;
  }

  /** The lowest place that is allowed and free, from the second page on: 0 is easily taken for "none". */
  #free(length: bigint, call: Call): Iova {
    const places = this.#allowed.length > 0 ? this.#allowed : [{ start: PAGE, last: this.#last }];
    for (const { start, last } of places) {
      let iova = roundUp(start > PAGE ? start : PAGE);
      while (iova <= last && last - iova >= length - 1n) {
        const taken = this.areas.firstIn(iova, iova + length - 1n);
        if (taken === undefined) return iova;
        iova = roundUp(taken.last + 1n);
      }
    }
    refuse("ENOSPC", call, "unmap something, or allow more");
  }
}

function roundUp(iova: bigint): bigint {
  return ((iova + PAGE - 1n) / PAGE) * PAGE;
}
