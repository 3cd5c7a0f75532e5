/** What a port has done since its device was opened. */
export interface PortCounts {
  readonly writes: number;
  readonly bytesWritten: number;
  readonly reads: number;
  readonly bytesRead: number;
  readonly faults: number;
}

const WRITES = 0;
const BYTES_WRITTEN = 1;
const READS = 2;
const BYTES_READ = 3;
const FAULTS = 4;
/** Doubles per port: a cache line. */
const DOUBLES = 8;

/** A port's counters in shared memory. Its thread counts; others look, without need for more than the recent past. */
export class PortCounters {
  /** Post it, and wrap it again on the other thread. */
  readonly values: Float64Array<SharedArrayBuffer>;

  constructor(values: Float64Array<SharedArrayBuffer>) {
    this.values = values;
  }

  static allocate(): PortCounters {
    return new PortCounters(new Float64Array(new SharedArrayBuffer(DOUBLES * 8)));
  }

  countWrite(bytes: number): void {
    this.values[WRITES]++;
    this.values[BYTES_WRITTEN] += bytes;
  }

  countRead(bytes: number): void {
    this.values[READS]++;
    this.values[BYTES_READ] += bytes;
  }

  countFault(): void {
    this.values[FAULTS]++;
  }

  get(): PortCounts {
    const { values } = this;
    return {
      writes: values[WRITES],
      bytesWritten: values[BYTES_WRITTEN],
      reads: values[READS],
      bytesRead: values[BYTES_READ],
      faults: values[FAULTS],
    };
  }
}
