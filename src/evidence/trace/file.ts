import { createReadStream, type ReadStream } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { UsageError } from "../../errors.js";
import { openRegularFile } from "../../sys/input-file.js";
import { cannotWrite, makeFolder } from "../../sys/output-file.js";
import { TraceDecoder } from "./decoder.js";
import { TraceEncoder } from "./encoder.js";
import type { TraceHeader } from "./format.js";
import type { TraceInterval } from "./interval.js";

/** Writes a trace to a file while it is recorded. If it is disposed before {@link end}, a reader finds that the trace is cut off. */
export class TraceWriter implements AsyncDisposable {
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #encoder: TraceEncoder;
  #bytes = 0;

  private constructor(path: string, file: FileHandle, encoder: TraceEncoder) {
    this.#path = path;
    this.#file = file;
    this.#encoder = encoder;
  }

  /** Creates the file, readable only by its owner, and writes the header. @throws UsageError `CANNOT_WRITE` */
  static async create(path: string, header: TraceHeader): Promise<TraceWriter> {
    let file: FileHandle;
    try {
      makeFolder(dirname(path));
      file = await open(path, "w", 0o600);
    } catch (cause) {
      throw cannotWrite(path, cause);
    }
    const writer = new TraceWriter(path, file, new TraceEncoder(header));
    await writer.#write(writer.#encoder.begin());
    return writer;
  }

  /** Bytes written so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Intervals added so far. */
  get intervals(): number {
    return this.#encoder.intervals;
  }

  /** Adds the next interval. @throws UsageError `CANNOT_WRITE` */
  async add(interval: TraceInterval): Promise<void> {
    await this.#write(this.#encoder.add(interval));
  }

  /** Ends the trace and flushes the file: the trace is complete. @throws UsageError `CANNOT_WRITE` */
  async end(): Promise<void> {
    await this.#write(this.#encoder.end());
    try {
      await this.#file.datasync();
    } catch (cause) {
      // A pipe, or /dev/stdout: there is nothing to flush.
      if ((cause as NodeJS.ErrnoException).code !== "EINVAL") throw cannotWrite(this.#path, cause);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }

  async #write(bytes: Uint8Array): Promise<void> {
    try {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await this.#file.write(bytes, done);
        done += bytesWritten;
      }
    } catch (cause) {
      throw cannotWrite(this.#path, cause);
    }
    this.#bytes += bytes.length;
  }
}

/** A trace file that is read as a stream: first the {@link header}, then the {@link intervals}, once. */
export class TraceFile implements AsyncDisposable {
  readonly header: TraceHeader;
  /** Decoded with the header, and kept. */
  readonly #first: IteratorResult<TraceInterval>;
  readonly #rest: AsyncGenerator<TraceInterval>;

  private constructor(header: TraceHeader, first: IteratorResult<TraceInterval>, rest: AsyncGenerator<TraceInterval>) {
    this.header = header;
    this.#first = first;
    this.#rest = rest;
  }

  /**
   * Opens a trace and reads its header.
   * @param within a folder that the file must lie in, after links are followed
   * @throws UsageError `BAD_TRACE`, `TRACE_TOO_NEW`; `NO_TRACE` if the file can't be read; `NOT_GRANTED` outside `within`
   */
  static async open(path: string, within?: string): Promise<TraceFile> {
    const decoder = new TraceDecoder(path);
    const intervals = decode(path, decoder, within);
    const first = await intervals.next();
    const { header } = decoder;
    if (header === undefined) throw new Error("a trace that was read to its end without a header");
    return new TraceFile(header, first, intervals);
  }

  /** Reads the intervals in order. Can be called once. @throws UsageError `BAD_TRACE` for damage */
  async *intervals(): AsyncGenerator<TraceInterval> {
    if (this.#first.done === true) return;
    yield this.#first.value;
    yield* this.#rest;
  }

  /** Closes the file. Reading to the end closes it as well. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#rest.return(undefined);
  }
}

/** Stretches of dirty memory that {@link readTrace} keeps: 256 MiB. */
const MAX_RUNS_KEPT = 1 << 25;
const MAX_INTERVALS_KEPT = 1_000_000;

/**
 * Reads a whole trace into memory.
 * @param within a folder that the file must lie in, after links are followed
 * @throws UsageError as {@link TraceFile.open}, also for damage further on; `TRACE_TOO_LARGE`
 */
export async function readTrace(
  path: string,
  within?: string,
): Promise<{ header: TraceHeader; intervals: TraceInterval[] }> {
  await using file = await TraceFile.open(path, within);
  const intervals: TraceInterval[] = [];
  let runs = 0;
  for await (const interval of file.intervals()) {
    for (const pages of interval.owners.values()) runs += pages.length / 2;
    if (runs > MAX_RUNS_KEPT || intervals.length >= MAX_INTERVALS_KEPT) {
      throw new UsageError(`${path} is too long a trace to be held in memory`, {
        code: "TRACE_TOO_LARGE",
        remedy: "record a shorter one, or one with longer intervals",
      });
    }
    intervals.push(interval);
  }
  return { header: file.header, intervals };
}

async function* decode(path: string, decoder: TraceDecoder, within: string | undefined): AsyncGenerator<TraceInterval> {
  let stream: ReadStream | undefined;
  try {
    stream = createReadStream(path, { fd: openRegularFile(path, { within }) });
    for await (const piece of stream as AsyncIterable<Buffer>) yield* decoder.push(piece);
  } catch (cause) {
    if (cause instanceof UsageError && cause.code !== "NOT_A_FILE") throw cause;
    throw new UsageError(`can't read ${path}: ${(cause as Error).message}`, {
      code: "NO_TRACE",
      remedy: "name a file that `dirtmap record` wrote",
      cause,
    });
  } finally {
    stream?.destroy();
  }
  decoder.finish();
}
