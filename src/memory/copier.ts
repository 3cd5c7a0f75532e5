/** Below this many bytes a loop is faster than a call into the engine. */
const LOOP_BYTES = 64;

/**
 * Copies parts of byte arrays without allocating: it keeps the view of the last part that was copied, since those who
 * copy much copy from the same buffers again and again.
 */
export class Copier {
  #view: Uint8Array = new Uint8Array(0);

  /** Copies source[from, from + bytes) to target[to, …). */
  copy(target: Uint8Array, to: number, source: Uint8Array, from: number, bytes: number): void {
    if (bytes < LOOP_BYTES) {
      for (let i = 0; i < bytes; i++) target[to + i] = source[from + i];
      return;
    }
    const view = this.#view;
    if (view.buffer !== source.buffer || view.byteOffset !== source.byteOffset + from || view.byteLength !== bytes) {
      this.#view = source.subarray(from, from + bytes);
    }
    target.set(this.#view, to);
  }
}
