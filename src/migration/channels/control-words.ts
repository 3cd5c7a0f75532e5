/*
 * What the threads of a sender share besides the arenas: which chunk is next, whether to stop, and how far each channel
 * is. All accesses are atomic.
 */

const NEXT_CHUNK = 0;
const STOP = 1;

/** A round, or a digest, is cut into chunks of this many pages (16 MiB); idle channels take the next one. */
export const CHUNK_PAGES = 4096;

/** A piece of an arena's RAM. */
export interface Chunk {
  readonly arena: number;
  readonly firstPage: number;
  readonly endPage: number;
}

/** Hands out the chunks of all arenas to whichever thread asks. */
export class ChunkQueue {
  /** Post it to a thread and wrap it there again. */
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly #chunks: readonly Chunk[];

  constructor(
    ramPages: readonly number[],
    words: Int32Array<SharedArrayBuffer> = new Int32Array(new SharedArrayBuffer(8)),
  ) {
    this.words = words;
    this.#chunks = ramPages.flatMap((pages, arena) =>
      Array.from({ length: Math.ceil(pages / CHUNK_PAGES) }, (_, i) => ({
        arena,
        firstPage: i * CHUNK_PAGES,
        endPage: Math.min(pages, (i + 1) * CHUNK_PAGES),
      })),
    );
  }

  /** All chunks are to be had again. Only while no thread takes any. */
  restart(): void {
    Atomics.store(this.words, STOP, 0);
    Atomics.store(this.words, NEXT_CHUNK, 0);
  }

  /** No more chunks are handed out. */
  stop(): void {
    Atomics.store(this.words, STOP, 1);
  }

  /** The next chunk; undefined: there is none left. */
  take(): Chunk | undefined {
    if (Atomics.load(this.words, STOP) === 1) return undefined;
    return this.#chunks[Atomics.add(this.words, NEXT_CHUNK, 1)];
  }
}

const WORDS_PER_CHANNEL = 8;

/** How many pages and bytes each channel has sent in the round under way. A channel writes its own words only. */
export class RoundProgress {
  /** Post it to a thread and wrap it there again. */
  readonly words: BigInt64Array<SharedArrayBuffer>;

  constructor(words: BigInt64Array<SharedArrayBuffer>) {
    this.words = words;
  }

  static allocate(channels: number): RoundProgress {
    return new RoundProgress(new BigInt64Array(new SharedArrayBuffer(channels * WORDS_PER_CHANNEL * 8)));
  }

  set(channel: number, pages: number, bytes: number): void {
    Atomics.store(this.words, channel * WORDS_PER_CHANNEL, BigInt(pages));
    Atomics.store(this.words, channel * WORDS_PER_CHANNEL + 1, BigInt(bytes));
  }

  /** Over all channels. */
  total(): { readonly pages: number; readonly bytes: number } {
    let pages = 0;
    let bytes = 0;
    for (let at = 0; at < this.words.length; at += WORDS_PER_CHANNEL) {
      pages += Number(Atomics.load(this.words, at));
      bytes += Number(Atomics.load(this.words, at + 1));
    }
    return { pages, bytes };
  }

  restart(): void {
    for (let at = 0; at < this.words.length; at++) Atomics.store(this.words, at, 0n);
  }
}
