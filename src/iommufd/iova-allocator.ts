import { MiB, PAGE_SIZE, U64_MAX } from "../memory/address.js";

/*
 * Where IOMMU_IOAS_MAP puts a mapping whose IOVA the caller leaves open (iopt_alloc_iova of
 * drivers/iommu/iommufd/io_pagetable.c): the lowest place that is allowed, not reserved, not in use, and aligned so that
 * large leaves can be used.
 */

/** A stretch of addresses, last one inclusive. */
export interface Span {
  readonly start: bigint;
  readonly last: bigint;
}

/** Sizes of the CPU's pages in bytes, by which Linux chooses IOVAs whatever the IOMMU's are. */
export interface CpuPages {
  /** PAGE_SIZE */
  readonly size: bigint;
  /** HPAGE_SIZE, the larger page of transparent huge pages: IOVAs are aligned no further, whatever the length. */
  readonly huge: bigint;
}

/** Those of x86, and of arm64 as it is mostly configured. */
export const CPU_PAGES: CpuPages = { size: BigInt(PAGE_SIZE), huge: BigInt(2 * MiB) };

/** The maximal stretches of [first, last] that `spans` cover; they may come in any order and overlap. */
export function covered(spans: Iterable<Span>, first: bigint, last: bigint): Span[] {
  const sorted = [...spans].filter((span) => span.start <= last && span.last >= first);
  sorted.sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
  const result: { start: bigint; last: bigint }[] = [];
  for (const span of sorted) {
    const start = span.start > first ? span.start : first;
    const end = span.last < last ? span.last : last;
    const previous = result.at(-1);
    if (previous !== undefined && previous.last + 1n >= start) {
      if (end > previous.last) previous.last = end;
    } else {
      result.push({ start, last: end });
    }
  }
  return result;
}

/** The maximal stretches of [first, last] that no span covers. */
export function holes(spans: Iterable<Span>, first: bigint, last: bigint): Span[] {
  const result: Span[] = [];
  let from = first;
  for (const used of covered(spans, first, last)) {
    if (used.start > from) result.push({ start: from, last: used.start - 1n });
    from = used.last + 1n;
  }
  if (from <= last) result.push({ start: from, last });
  return result;
}

/** What {@link allocateIova} is asked. */
export interface IovaRequest {
  /** Where the memory lies in its arena or file, in bytes: the IOVA gets the same alignment, and the same offset in its page. */
  readonly address: bigint;
  /** In bytes, above 0. */
  readonly length: bigint;
  /** What the IOAS demands of every IOVA: a power of two, at most PAGE_SIZE. */
  readonly alignment: bigint;
  /** Where it may be; empty: anywhere. */
  readonly allowed: Iterable<Span>;
  /** Where it may not be: reserved ranges and mappings. */
  readonly used: readonly Span[];
  readonly cpuPages: CpuPages;
}

/** The lowest fitting IOVA, or the errno: EOVERFLOW for 2^63 bytes and more, EINVAL for a misaligned address, ENOSPC. */
export function allocateIova(request: IovaRequest): bigint | "EOVERFLOW" | "EINVAL" | "ENOSPC" {
  const { address, length, used, cpuPages } = request;
  if (length >= U64_MAX / 2n) return "EOVERFLOW";
  const offset = address % cpuPages.size;
  const alignment = alignmentFor(address, length, cpuPages.huge);
  if (alignment < request.alignment) return "EINVAL";
  const allowed = [...request.allowed];
  // The first page is never chosen, since 0 is easily taken for "none", nor the last.
  const first = cpuPages.size;
  const last = U64_MAX - cpuPages.size;
  const places = allowed.length === 0 ? [{ start: first, last }] : covered(allowed, first, last);
  for (const place of places) {
    const start = firstFit(place, length, alignment, offset);
    if (start === undefined) continue;
    for (const hole of holes(used, start, place.last)) {
      const iova = firstFit(hole, length, alignment, offset);
      if (iova !== undefined) return iova;
    }
  }
  return "ENOSPC";
}

/** As aligned as the memory is and the length can use. */
function alignmentFor(address: bigint, length: bigint, most: bigint): bigint {
  let alignment = 1n;
  while (alignment < length) alignment <<= 1n;
  if (address !== 0n) {
    const lowestBit = address & -address;
    if (lowestBit < alignment) alignment = lowestBit;
  }
  return alignment < most ? alignment : most;
}

/** The first aligned address of a stretch behind which `length` bytes are left in it. */
function firstFit(place: Span, length: bigint, alignment: bigint, offset: bigint): bigint | undefined {
  const start = ((place.start + alignment - 1n) & ~(alignment - 1n)) | offset;
  return start < place.last && place.last - start >= length - 1n ? start : undefined;
}
