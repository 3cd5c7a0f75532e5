import { UapiError } from "../uapi/errno.js";

/*
 * How a reader waits until DMA in flight has landed.
 *
 * Each thread of DMA (a device's port, a vCPU) owns two words of shared memory:
 *   sequence    odd while a DMA is in flight, even between; only the owner writes it
 *   generation  raised by whoever flushed what the owner may have cached
 * The owner goes odd, loads the generation (and drops its IOTLB when it has moved), translates, stores, marks logs, goes
 * even. A reader clears bits, raises the generation, then waits until the sequence is even or has moved on. All of
 * these accesses are atomic, on both sides: they are the fences that order the owner's plain stores before the
 * reader's copying. (Store-to-load reordering of plain words would lose a write about once in 10^7.)
 */

/** Words per owner; a cache line, so that owners don't slow each other. */
export const IN_FLIGHT_WORDS = 16;
const SEQUENCE = 0;
const GENERATION = 1;

/** Spins before the reader goes to sleep between looks. A DMA of a page takes well under a microsecond. */
const SPINS = 2000;

/** An owner that has not finished a DMA in this time is hung; its tracker's answer would be a guess. */
export const DRAIN_DEADLINE_MS = 10_000;

/** The words of a number of owners, in shared memory: post `words` to a thread and wrap it there again. */
export class InFlight {
  readonly words: Int32Array<SharedArrayBuffer>;

  constructor(words: Int32Array<SharedArrayBuffer>) {
    this.words = words;
  }

  static allocate(owners: number): InFlight {
    return new InFlight(new Int32Array(new SharedArrayBuffer(owners * IN_FLIGHT_WORDS * 4)));
  }

  /** Owner's side: a DMA begins. Returns the flush generation, which the owner compares with the one it cached under. */
  begin(owner: number): number {
    const at = owner * IN_FLIGHT_WORDS;
    Atomics.store(this.words, at + SEQUENCE, this.words[at + SEQUENCE] + 1);
    return Atomics.load(this.words, at + GENERATION);
  }

  /** Owner's side: the DMA, and its marks in logs, are in memory. */
  end(owner: number): void {
    const at = owner * IN_FLIGHT_WORDS;
    Atomics.store(this.words, at + SEQUENCE, this.words[at + SEQUENCE] + 1);
  }

  /** Reader's side: makes the owner drop what it cached, from its next DMA on. */
  flush(owner: number): void {
    Atomics.add(this.words, owner * IN_FLIGHT_WORDS + GENERATION, 1);
  }

  /**
   * Reader's side, after it cleared or took away what owners may have cached: flushes them all, then {@link drain}s.
   * When it resolves, no DMA goes by what was cached.
   * @throws UapiError ETIMEDOUT
   */
  async invalidate(owners: ReadonlySet<number> | readonly number[]): Promise<void> {
    for (const owner of owners) this.flush(owner);
    await this.drain(owners);
  }

  /**
   * Reader's side: resolves when each DMA that these owners had in flight at the call has ended. Spins first, then
   * looks once per turn of the event loop, so it may be called on any thread.
   * @throws UapiError ETIMEDOUT when an owner hangs: what it wrote is unknown, and all it may have written is dirty
   */
  async drain(owners: Iterable<number>, deadlineMs = DRAIN_DEADLINE_MS): Promise<void> {
    const until = Date.now() + deadlineMs;
    const waiting: { at: number; seen: number }[] = [];
    for (const owner of owners) {
      const at = owner * IN_FLIGHT_WORDS + SEQUENCE;
      const seen = Atomics.load(this.words, at);
      if ((seen & 1) === 1) waiting.push({ at, seen });
    }
    for (const { at, seen } of waiting) {
      for (let spin = 0; Atomics.load(this.words, at) === seen; spin++) {
        if (spin < SPINS) continue;
        if (Date.now() > until) {
          throw new UapiError("ETIMEDOUT", {
            syscall: "drain",
            attempted: `wait for the DMA in flight of port ${at / IN_FLIGHT_WORDS} for ${deadlineMs} ms`,
            remedy: "the device hangs in the middle of a DMA: reset it",
          });
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
  }
}
