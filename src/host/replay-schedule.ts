/** The writes of one device in a trace. The device repeats them over and over, in this order and at these times. */
export interface ReplaySchedule {
  /** The guest page of each write. */
  readonly pages: Uint32Array<SharedArrayBuffer>;
  /** Per interval, the number of writes up to its end. Ascending; the last is the number of all writes. */
  readonly writes: Uint32Array<SharedArrayBuffer>;
  /** Per interval, microseconds from the start of the trace to the interval's end. Ascending, above 0. */
  readonly endsUs: Float64Array<SharedArrayBuffer>;
}
