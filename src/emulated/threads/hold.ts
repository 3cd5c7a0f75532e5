/*
 * A test's handle on a device in the middle of a DMA: it stops between translation and store, where a reader that does
 * not drain would lose a write. One word of shared memory: open, armed, holding.
 */

const OPEN = 0;
const ARMED = 1;
const HOLDING = 2;

/** A held device goes on by itself after this time: a test that forgot it must not hang. */
const LIMIT_MS = 5000;

/** Holds the next DMA of a device. Post `words` to its thread. */
export class DmaHold {
  readonly words: Int32Array<SharedArrayBuffer>;

  constructor(words = new Int32Array(new SharedArrayBuffer(4))) {
    this.words = words;
  }

  /** The next DMA stops. */
  arm(): void {
    Atomics.store(this.words, 0, ARMED);
  }

  /** True while a DMA is held. */
  get holding(): boolean {
    return Atomics.load(this.words, 0) === HOLDING;
  }

  /** Lets go. */
  release(): void {
    Atomics.store(this.words, 0, OPEN);
    Atomics.notify(this.words, 0);
  }

  /** The device's side, in a DMA. */
  pass(): void {
    if (Atomics.compareExchange(this.words, 0, ARMED, HOLDING) !== ARMED) return;
    Atomics.wait(this.words, 0, HOLDING, LIMIT_MS);
  }
}
