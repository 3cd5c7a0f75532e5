/**
 * Many readers or one writer, first come first served: what iova_rwsem and domains_rwsem are to an IOAS. A dirty bitmap
 * may be read by several at once; nothing may be mapped, unmapped or freed meanwhile.
 */
export class RwLock {
  /** Number of readers inside, or -1 for a writer. */
  #inside = 0;
  readonly #waiting: { readonly exclusive: boolean; readonly enter: () => void }[] = [];

  /** Runs `work` while no writer is inside. */
  async read<T>(work: () => T | Promise<T>): Promise<T> {
    await this.#enter(false);
    try {
      return await work();
    } finally {
      this.#inside--;
      this.#admit();
    }
  }

  /** Runs `work` while nobody else is inside. */
  async write<T>(work: () => T | Promise<T>): Promise<T> {
    await this.#enter(true);
    try {
      return await work();
    } finally {
      this.#inside = 0;
      this.#admit();
    }
  }

  #enter(exclusive: boolean): Promise<void> {
    return new Promise((enter) => {
      this.#waiting.push({ exclusive, enter });
      this.#admit();
    });
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      if (this.#inside < 0 || (next.exclusive && this.#inside > 0)) return;
      this.#inside = next.exclusive ? -1 : this.#inside + 1;
      this.#waiting.shift();
      next.enter();
    }
  }
}
