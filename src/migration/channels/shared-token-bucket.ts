/*
 * The bandwidth limit that all channels share. Tokens are bytes; a frame may be sent while there are any, and takes its
 * own number, into debt if need be. Whoever comes by refills. Three words of shared memory: the rate, when it was last
 * refilled, the tokens.
 */

const RATE = 0;
const REFILLED = 1;
const TOKENS = 2;
const WORDS = 3;

/** A rate above what any network carries: no limit. */
const UNLIMITED = 2n ** 62n;
const SECOND = 1_000_000_000n;

/** Refilling more often gains nothing. */
const REFILL_NS = 1_000_000n;

/** Unused tokens are kept for this long: a channel that was held up may catch up by no more. */
const BURST_NS = 20_000_000n;

/** Nobody sleeps longer at a time, so that a new limit takes effect at once. */
const MAX_WAIT_MS = 20;

export class SharedTokenBucket {
  /** Post it to a thread and wrap it there again. */
  readonly words: BigInt64Array<SharedArrayBuffer>;
  readonly #now: () => bigint;

  /** @param now nanoseconds of a clock that all threads share */
  constructor(
    words: BigInt64Array<SharedArrayBuffer> = new BigInt64Array(new SharedArrayBuffer(WORDS * 8)).fill(UNLIMITED, 0, 1),
    now: () => bigint = process.hrtime.bigint,
  ) {
    this.words = words;
    this.#now = now;
  }

  /** @param bytesPerSecond at least 1; Infinity: no limit */
  setRate(bytesPerSecond: number): void {
    const rate = bytesPerSecond < Number(UNLIMITED) ? BigInt(Math.max(1, Math.floor(bytesPerSecond))) : UNLIMITED;
    Atomics.store(this.words, REFILLED, this.#now());
    Atomics.store(this.words, TOKENS, 0n);
    Atomics.store(this.words, RATE, rate);
  }

  /** Bytes per second; Infinity: no limit. */
  get rate(): number {
    const rate = Atomics.load(this.words, RATE);
    return rate === UNLIMITED ? Number.POSITIVE_INFINITY : Number(rate);
  }

  /** Takes `bytes` and answers 0: go. Or takes nothing, and answers after how many milliseconds to ask again. */
  take(bytes: number): number {
    const rate = Atomics.load(this.words, RATE);
    if (rate === UNLIMITED) return 0;
    this.#refill(rate);
    // Two channels may both find the last tokens; the debt is theirs to wait for.
    const tokens = Atomics.load(this.words, TOKENS);
    if (tokens > 0n) {
      Atomics.sub(this.words, TOKENS, BigInt(bytes));
      return 0;
    }
    const waitMs = Number((-tokens * 1000n) / rate) + 1;
    return Math.min(waitMs, MAX_WAIT_MS);
  }

  #refill(rate: bigint): void {
    const last = Atomics.load(this.words, REFILLED);
    const now = this.#now();
    const elapsed = now - last;
    if (elapsed < REFILL_NS) return;
    const added = (rate * elapsed) / SECOND;
    // Time that made no whole token yet is left for the next refill.
    const until = last + (added * SECOND) / rate;
    if (added === 0n || Atomics.compareExchange(this.words, REFILLED, last, until) !== last) return;
    const burst = (rate * BURST_NS) / SECOND + 1n;
    const tokens = Atomics.add(this.words, TOKENS, added) + added;
    if (tokens > burst) Atomics.sub(this.words, TOKENS, tokens - burst);
  }
}
