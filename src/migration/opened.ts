/** What a migration has opened. All of it is closed at once in the end; what can't be closed keeps nothing else open. */
export class Opened implements AsyncDisposable {
  readonly #parts: { readonly what: string; readonly close: () => PromiseLike<void> }[] = [];
  readonly #tried: (what: string, doing: PromiseLike<void>) => Promise<void>;

  /** @param tried awaits a part's end, and never throws */
  constructor(tried: (what: string, doing: PromiseLike<void>) => Promise<void>) {
    this.#tried = tried;
  }

  /** @param what is said if it can't be closed: "the connection closed" */
  add(what: string, close: () => PromiseLike<void>): void {
    this.#parts.push({ what, close });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#parts.map(({ what, close }) => this.#tried(what, close())));
  }
}
