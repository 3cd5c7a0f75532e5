import type { Iova } from "../memory/address.js";

/** A contiguous range of IOVAs. */
export interface IovaStretch {
  /** The first address. */
  readonly iova: Iova;
  /** Bytes, above 0. */
  readonly length: bigint;
}

/** True where the two have an address in common. */
export function overlap(a: IovaStretch, b: IovaStretch): boolean {
  return a.iova < b.iova + b.length && b.iova < a.iova + a.length;
}

/** True where `inner` lies in `outer` as a whole. */
export function contains(outer: IovaStretch, inner: IovaStretch): boolean {
  return outer.iova <= inner.iova && inner.iova + inner.length <= outer.iova + outer.length;
}

/** Sorts stretches and joins those that overlap or touch. */
export function joined(ranges: readonly IovaStretch[]): IovaStretch[] {
  const sorted = [...ranges].sort((a, b) => (a.iova < b.iova ? -1 : a.iova > b.iova ? 1 : 0));
  const result: { iova: Iova; length: bigint }[] = [];
  for (const { iova, length } of sorted) {
    const last = result.at(-1);
    if (last === undefined || iova > last.iova + last.length) {
      result.push({ iova, length });
    } else if (iova + length > last.iova + last.length) {
      last.length = iova + length - last.iova;
    }
  }
  return result;
}

/**
 * The stretches that a device's log is asked for: rounded outwards to the granule (VFIO_DEVICE_FEATURE_DMA_LOGGING_START
 * refuses others), and where they are more than the device takes, joined across the smallest gaps.
 */
export function loggingRanges(ranges: readonly IovaStretch[], granule: number, maxRanges: number): IovaStretch[] {
  const unit = BigInt(granule);
  const rounded = ranges.map(({ iova, length }) => {
    const start = iova - (iova % unit);
    const end = ((iova + length + unit - 1n) / unit) * unit;
    return { iova: start, length: end - start };
  });
  const result = joined(rounded);
  while (result.length > Math.max(1, maxRanges)) {
    let smallest = 1;
    for (let i = 2; i < result.length; i++) {
      if (gapBefore(result, i) < gapBefore(result, smallest)) smallest = i;
    }
    const left = result[smallest - 1];
    const right = result[smallest];
    result.splice(smallest - 1, 2, { iova: left.iova, length: right.iova + right.length - left.iova });
  }
  return result;
}

function gapBefore(ranges: readonly IovaStretch[], index: number): bigint {
  const left = ranges[index - 1];
  return ranges[index].iova - left.iova - left.length;
}
