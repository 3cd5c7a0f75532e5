import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { DirtmapError, explain } from "../../errors.js";
import type { TrackedRange } from "../tracker.js";

/** What every session keeps: whether its answers can still be trusted, and how it is switched off once. */
export class SessionState {
  readonly #owner: string;
  readonly #claim: Disposable;
  readonly #stop: () => Promise<void>;
  #failure: unknown;
  #broken = false;
  #closed = false;

  /** @param stop switches the source off */
  constructor(owner: string, claim: Disposable, stop: () => Promise<void>) {
    this.#owner = owner;
    this.#claim = claim;
    this.#stop = stop;
  }

  /**
   * Runs a read. Once one has failed, nobody knows which bits were taken: all later ones are refused.
   * @throws whatever `read` throws; DirtmapError `TRACKER_BROKEN`, `TRACKER_OFF`
   */
  async reading(range: TrackedRange, read: () => Promise<DirtyBitmap>): Promise<DirtyBitmap> {
    const attempted = `read ${range.length} bytes at IOVA 0x${range.iova.toString(16)} of the tracker of ${this.#owner}`;
    if (this.#closed) {
      throw new DirtmapError(`the tracker of ${this.#owner} is off`, { code: "TRACKER_OFF", attempted });
    }
    if (this.#broken) {
      throw new DirtmapError(`the tracker of ${this.#owner} failed before: ${explain(this.#failure)}`, {
        code: "TRACKER_BROKEN",
        attempted,
        remedy: "count all that it covers as dirty, end this session and start another",
        cause: this.#failure,
      });
    }
    try {
      return await read();
    } catch (error) {
      this.#broken = true;
      this.#failure = error;
      throw error;
    }
  }

  /** Switches the source off and lets another reader in; again does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    try {
      await this.#stop();
    } finally {
      this.#claim[Symbol.dispose]();
    }
  }
}

/**
 * Claims, switches on and, where that fails or was aborted meanwhile, leaves nothing behind.
 * @param on switches the source on and returns its session
 */
export async function startSession<Session extends AsyncDisposable>(
  claim: Disposable,
  signal: AbortSignal | undefined,
  on: () => Promise<Session>,
): Promise<Session> {
  let session: Session;
  try {
    signal?.throwIfAborted();
    session = await on();
  } catch (error) {
    claim[Symbol.dispose]();
    throw error;
  }
  if (signal?.aborted) {
    await session[Symbol.asyncDispose]();
    signal.throwIfAborted();
  }
  return session;
}
