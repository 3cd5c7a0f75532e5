import { crc32, inflateRawSync } from "node:zlib";
import type { PageRuns } from "../../bitmap/ram-runs.js";
import { UsageError } from "../../errors.js";
import {
  FILE_HEAD_BYTES,
  FRAME,
  FRAME_HEAD_BYTES,
  FRAME_TAIL_BYTES,
  MAX_CHUNK_BYTES,
  MAX_INTERVAL_US,
  MAX_PAYLOAD_BYTES,
  MAX_RUNS_PER_INTERVAL,
  MAX_RUNS_PER_OPERATION,
  OPERATION,
  TRACE_MAGIC,
  TRACE_VERSION,
  type TraceHeader,
  traceHeaderSchema,
} from "./format.js";
import type { TraceInterval } from "./interval.js";
import { VarintReader } from "./varint.js";

/** Pages are numbers of 32 bits. */
const END_PAGE = 2 ** 32 - 1;

/**
 * Takes a trace's bytes, in pieces of any size, and gives its intervals. Holds a frame and the interval under way, however
 * long the trace is. What it throws is a UsageError `BAD_TRACE` (damaged, cut off, no trace) or `TRACE_TOO_NEW`.
 */
export class TraceDecoder {
  readonly #name: string;
  /** What came and is not decoded yet: less than a frame, but while a piece is being taken in. */
  #held: Buffer<ArrayBufferLike> = Buffer.alloc(0);
  #header: TraceHeader | undefined;
  #headed = false;
  #ended = false;
  /** Of the interval under way, by index. */
  #owners = new Map<number, GrowingRuns>();
  #runsInInterval = 0;
  #intervals = 0;
  #pages = 0;

  /** @param name how messages call the trace: its file */
  constructor(name: string) {
    this.#name = name;
  }

  /** Undefined until enough was taken in. */
  get header(): TraceHeader | undefined {
    return this.#header;
  }

  /** Takes a piece in and gives the intervals that it completes. */
  *push(piece: Uint8Array): Generator<TraceInterval> {
    this.#held = this.#held.length === 0 ? Buffer.from(piece) : Buffer.concat([this.#held, piece]);
    if (!this.#headed) {
      if (this.#held.length < FILE_HEAD_BYTES) return;
      this.#checkHead();
    }
    for (;;) {
      const taken = this.#takeFrame();
      if (taken === undefined) return;
      if (taken.type === FRAME.HEADER) this.#takeHeader(taken.payload);
      else if (taken.type === FRAME.CHUNK) yield* this.#chunk(taken.payload);
      else if (taken.type === FRAME.END) this.#end(taken.payload);
      else throw this.#bad(`it has a frame of unknown type ${taken.type}`);
    }
  }

  /** Nothing more comes. */
  finish(): TraceHeader {
    if (this.#ended && this.#header !== undefined) return this.#header;
    if (!this.#headed && this.#held.length === 0) throw this.#bad("it is empty");
    throw this.#bad(`it is cut off after ${this.#intervals} intervals`);
  }

  #checkHead(): void {
    if (this.#held.readUInt32LE(0) !== TRACE_MAGIC) {
      throw new UsageError(`${this.#name} is no trace`, {
        code: "BAD_TRACE",
        remedy: "record one with: dirtmap record --output FILE",
      });
    }
    const version = this.#held.readUInt16LE(4);
    if (version > TRACE_VERSION) {
      throw new UsageError(
        `${this.#name} is a trace of version ${version}, and this Dirtmap reads up to ${TRACE_VERSION}`,
        { code: "TRACE_TOO_NEW", remedy: "use the Dirtmap that recorded it, or a newer one" },
      );
    }
    if (version === 0 || this.#held.readUInt16LE(6) !== 0) throw this.#bad("its head is damaged");
    this.#held = this.#held.subarray(FILE_HEAD_BYTES);
    this.#headed = true;
  }

  #takeFrame(): { type: number; payload: Buffer<ArrayBufferLike> } | undefined {
    if (this.#held.length === 0) return undefined;
    if (this.#ended) throw this.#bad("there is data behind its end");
    if (this.#held.length < FRAME_HEAD_BYTES) return undefined;
    const length = this.#held.readUInt32LE(1);
    if (length > MAX_PAYLOAD_BYTES) throw this.#bad(`it has a frame of ${length} bytes`);
    const end = FRAME_HEAD_BYTES + length;
    if (this.#held.length < end + FRAME_TAIL_BYTES) return undefined;
    if (crc32(this.#held.subarray(0, end)) !== this.#held.readUInt32LE(end)) {
      throw this.#bad(`a checksum is wrong after ${this.#intervals} intervals`);
    }
    const type = this.#held[0];
    if ((type === FRAME.HEADER) !== (this.#header === undefined)) throw this.#bad("its frames are out of order");
    const payload = this.#held.subarray(FRAME_HEAD_BYTES, end);
    this.#held = this.#held.subarray(end + FRAME_TAIL_BYTES);
    return { type, payload };
  }

  #takeHeader(payload: Uint8Array): void {
    let json: unknown;
    try {
      json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
    } catch {
      throw this.#bad("its header is no JSON");
    }
    const parsed = traceHeaderSchema.safeParse(json);
    if (!parsed.success) {
      const [{ path, message }] = parsed.error.issues;
      throw this.#bad(`its header's ${path.join(".")}: ${message}`);
    }
    const { owners } = parsed.data;
    if (new Set(owners.map(({ owner }) => owner)).size !== owners.length) {
      throw this.#bad("its header names an owner twice");
    }
    this.#header = parsed.data;
  }

  *#chunk(deflated: Uint8Array): Generator<TraceInterval> {
    let raw: Uint8Array;
    try {
      raw = inflateRawSync(deflated, { maxOutputLength: MAX_CHUNK_BYTES });
    } catch {
      throw this.#bad(`a chunk can't be inflated after ${this.#intervals} intervals`);
    }
    const numbers = new VarintReader(raw);
    while (!numbers.done) {
      const operation = numbers.next();
      if (operation === OPERATION.RUNS) this.#runs(numbers);
      else if (operation === OPERATION.INTERVAL) yield this.#interval(numbers);
      else throw this.#bad("it has an operation that is not known");
    }
  }

  #runs(numbers: VarintReader): void {
    const owner = numbers.next();
    const count = numbers.next();
    if (owner === undefined || owner >= (this.#header?.owners.length ?? 0)) {
      throw this.#bad("it speaks of an owner that its header does not name");
    }
    if (count === undefined || count < 1 || count > MAX_RUNS_PER_OPERATION)
      throw this.#bad("a number of runs is wrong");
    const known = this.#owners.get(owner) ?? new GrowingRuns();
    this.#owners.set(owner, known);
    this.#runsInInterval += count;
    if (this.#runsInInterval > MAX_RUNS_PER_INTERVAL) throw this.#bad("an interval has too many runs");
    let end = 0;
    for (let run = 0; run < count; run++) {
      const gap = numbers.next();
      const more = numbers.next();
      if (gap === undefined || more === undefined) throw this.#bad("a run is cut off");
      const first = end + gap;
      end = first + more + 1;
      if (end > END_PAGE || first < known.end) throw this.#bad("a run lies outside memory, or over another");
      known.add(first, more + 1);
      this.#pages += more + 1;
    }
  }

  #interval(numbers: VarintReader): TraceInterval {
    const us = numbers.next();
    if (us === undefined || us < 1 || us > MAX_INTERVAL_US) throw this.#bad("an interval's length is wrong");
    const owners = new Map<string, PageRuns>();
    for (const [index, runs] of this.#owners) {
      const owner = this.#header?.owners[index]?.owner;
      if (owner !== undefined) owners.set(owner, runs.take());
    }
    this.#owners = new Map();
    this.#runsInInterval = 0;
    this.#intervals++;
    return { elapsedMs: us / 1000, owners };
  }

  #end(payload: Uint8Array): void {
    const numbers = new VarintReader(payload);
    const intervals = numbers.next();
    const pages = numbers.next();
    if (intervals !== this.#intervals || pages !== this.#pages || !numbers.done || this.#owners.size > 0) {
      throw this.#bad("its end says that something is missing");
    }
    this.#ended = true;
  }

  #bad(problem: string): UsageError {
    return new UsageError(`${this.#name}: ${problem}`, {
      code: "BAD_TRACE",
      remedy: "record it again, or get another copy of the file",
    });
  }
}

/** Runs that are put together from pieces, and grow no faster than what comes in. */
class GrowingRuns {
  count = 0;
  /** The page behind the last run. */
  end = 0;
  #words = new Uint32Array(32);

  add(first: number, pages: number): void {
    // Where an operation's first run goes on where the last one's ended, it is the same run.
    if (this.count > 0 && first === this.end) {
      this.#words[2 * this.count - 1] += pages;
      this.end += pages;
      return;
    }
    if (2 * this.count === this.#words.length) {
      const larger = new Uint32Array(4 * this.count);
      larger.set(this.#words);
      this.#words = larger;
    }
    this.#words[2 * this.count] = first;
    this.#words[2 * this.count + 1] = pages;
    this.count++;
    this.end = first + pages;
  }

  take(): PageRuns {
    return this.#words.slice(0, 2 * this.count);
  }
}
