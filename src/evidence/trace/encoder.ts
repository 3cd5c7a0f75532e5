import { deflateRawSync } from "node:zlib";
import type { PageRuns } from "../../bitmap/ram-runs.js";
import { DirtmapError } from "../../errors.js";
import {
  CHUNK_BYTES,
  FILE_HEAD_BYTES,
  FRAME,
  frame,
  MAX_CHUNK_BYTES,
  MAX_INTERVAL_US,
  MAX_RUNS_PER_INTERVAL,
  MAX_RUNS_PER_OPERATION,
  OPERATION,
  TRACE_MAGIC,
  TRACE_VERSION,
  type TraceHeader,
} from "./format.js";
import type { TraceInterval } from "./interval.js";
import { MAX_VARINT_BYTES, putVarint } from "./varint.js";

/**
 * Makes a trace's bytes: {@link begin}, {@link add} per interval, {@link end}. Each returns what is to be written next,
 * which may be nothing. Holds one chunk.
 */
export class TraceEncoder {
  readonly #owners: ReadonlyMap<string, number>;
  readonly #header: TraceHeader;
  readonly #chunk = new Uint8Array(MAX_CHUNK_BYTES);
  #at = 0;
  #intervals = 0;
  #pages = 0;

  constructor(header: TraceHeader) {
    this.#header = header;
    this.#owners = new Map(header.owners.map(({ owner }, index) => [owner, index]));
  }

  get intervals(): number {
    return this.#intervals;
  }

  begin(): Uint8Array {
    const head = new Uint8Array(FILE_HEAD_BYTES);
    const view = new DataView(head.buffer);
    view.setUint32(0, TRACE_MAGIC, true);
    view.setUint16(4, TRACE_VERSION, true);
    return joined([head, frame(FRAME.HEADER, new TextEncoder().encode(JSON.stringify(this.#header)))]);
  }

  /**
   * @throws DirtmapError `BAD_TRACE` for an owner that the header doesn't name, or more stretches than a trace holds;
   * then nothing of the interval is in the trace
   */
  add({ elapsedMs, owners }: TraceInterval): Uint8Array {
    let stretches = 0;
    for (const [owner, runs] of owners) {
      if (!this.#owners.has(owner)) throw bad(`its header names no '${owner}'`);
      stretches += runs.length / 2;
    }
    if (stretches > MAX_RUNS_PER_INTERVAL) throw bad(`an interval has ${stretches} stretches of dirty memory`);
    const frames: Uint8Array[] = [];
    for (const [owner, runs] of owners) {
      for (let run = 0; run < runs.length / 2; run += MAX_RUNS_PER_OPERATION) {
        this.#runs(this.#owners.get(owner) ?? 0, runs, run, Math.min(runs.length / 2, run + MAX_RUNS_PER_OPERATION));
        if (this.#at >= CHUNK_BYTES) frames.push(this.#close());
      }
    }
    const us = Math.min(Math.max(1, Math.round(elapsedMs * 1000)), MAX_INTERVAL_US);
    this.#at = putVarint(this.#chunk, this.#at, OPERATION.INTERVAL);
    this.#at = putVarint(this.#chunk, this.#at, us);
    this.#intervals++;
    if (this.#at >= CHUNK_BYTES) frames.push(this.#close());
    return joined(frames);
  }

  end(): Uint8Array {
    const frames = this.#at > 0 ? [this.#close()] : [];
    const totals = new Uint8Array(2 * MAX_VARINT_BYTES);
    const bytes = putVarint(totals, putVarint(totals, 0, this.#intervals), this.#pages);
    return joined([...frames, frame(FRAME.END, totals.subarray(0, bytes))]);
  }

  #runs(owner: number, runs: PageRuns, from: number, to: number): void {
    let at = this.#at;
    at = putVarint(this.#chunk, at, OPERATION.RUNS);
    at = putVarint(this.#chunk, at, owner);
    at = putVarint(this.#chunk, at, to - from);
    let before = 0;
    for (let i = 2 * from; i < 2 * to; i += 2) {
      at = putVarint(this.#chunk, at, runs[i] - before);
      at = putVarint(this.#chunk, at, runs[i + 1] - 1);
      before = runs[i] + runs[i + 1];
      this.#pages += runs[i + 1];
    }
    this.#at = at;
  }

  #close(): Uint8Array {
    const deflated = deflateRawSync(this.#chunk.subarray(0, this.#at));
    this.#at = 0;
    return frame(FRAME.CHUNK, deflated);
  }
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  return parts.length === 1 ? parts[0] : new Uint8Array(Buffer.concat(parts));
}

function bad(problem: string): DirtmapError {
  return new DirtmapError(`the trace can't be written: ${problem}`, { code: "BAD_TRACE" });
}
