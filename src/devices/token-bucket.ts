/** How long a writer that was kept from running may catch up, in milliseconds: bounds the burst after a pause. */
const BURST_MS = 20;

/** Paces a writer to a rate. Amounts are bytes, times are nanoseconds of CLOCK_MONOTONIC. */
export class TokenBucket {
  readonly #bytesPerMs: number;
  readonly #capacity: number;
  #tokens = 0;
  #filledAt: bigint | undefined;

  /** @param bytesPerSecond 0: never any tokens; @param unit the largest amount taken at once: a bucket holds two at least */
  constructor(bytesPerSecond: number, unit: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#capacity = bytesPerSecond === 0 ? 0 : Math.max(this.#bytesPerMs * BURST_MS, 2 * unit);
  }

  /** Adds what has become due since the last call. */
  refill(nowNs: bigint): void {
    if (this.#filledAt !== undefined) {
      const ms = Number(nowNs - this.#filledAt) / 1e6;
      this.#tokens = Math.min(this.#capacity, this.#tokens + ms * this.#bytesPerMs);
    }
    this.#filledAt = nowNs;
  }

  /** Takes `bytes` if they are there. */
  take(bytes: number): boolean {
    if (this.#tokens < bytes) return false;
    this.#tokens -= bytes;
    return true;
  }

  /** Forgets the time that passed while the writer was stopped. */
  pause(): void {
    this.#filledAt = undefined;
  }

  /** Milliseconds until `bytes` are there; at most `most`. */
  wait(bytes: number, most: number): number {
    if (this.#bytesPerMs === 0) return most;
    return Math.min(most, Math.max(0, (bytes - this.#tokens) / this.#bytesPerMs));
  }
}
