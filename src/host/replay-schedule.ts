/** A trace's writes of one device, in the order and at the times at which it repeats them, over and over. */
export interface ReplaySchedule {
  /** Guest page of each write. */
  readonly pages: Uint32Array<SharedArrayBuffer>;
  /** Per interval, how many writes there are up to its end. Ascending; the last is all of them. */
  readonly writes: Uint32Array<SharedArrayBuffer>;
  /** Per interval, microseconds from the beginning to its end. Ascending, above 0. */
  readonly endsUs: Float64Array<SharedArrayBuffer>;
}
