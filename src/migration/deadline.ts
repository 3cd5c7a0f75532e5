import { DirtmapError } from "../errors.js";

/** The longest wait for each kind of answer, in milliseconds. No wait in a migration is unbounded. */
export interface Timeouts {
  /** The destination's answer to HELLO: it builds the machine first. */
  readonly acceptMs: number;
  /** A device or the vCPUs: a change of state, a read of a data stream. */
  readonly deviceMs: number;
  /** READY: the destination loads and verifies all state. */
  readonly readyMs: number;
  /** RUNNING, after GO. If it does not come in time, the outcome is `indeterminate`. */
  readonly runningMs: number;
  /** At the destination: GO, after READY. If it does not come in time, the destination discards the machine. */
  readonly goMs: number;
  /** The other side's next message in any other phase, including its digests and its report. */
  readonly peerMs: number;
}

export const DEFAULT_TIMEOUTS: Timeouts = {
  acceptMs: 30_000,
  deviceMs: 10_000,
  readyMs: 30_000,
  runningMs: 5_000,
  goMs: 30_000,
  peerMs: 30_000,
};

/**
 * The promise's outcome, if it comes in time and before the signal.
 * @param what is waited for, as a phrase: "READY from the destination"
 * @throws DirtmapError `TIMED_OUT`; the signal's reason
 */
export async function within<T>(ms: number, what: string, promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  // Whoever wins, the loser's rejection is nobody's.
  promise.catch(() => {});
  signal?.throwIfAborted();
  let timer: NodeJS.Timeout | undefined;
  let onAbort: (() => void) | undefined;
  try {
    return await new Promise<T>((resolve, reject) => {
      promise.then(resolve, reject);
      onAbort = () => reject(signal?.reason);
      signal?.addEventListener("abort", onAbort, { once: true });
      timer = setTimeout(() => {
        reject(
          new DirtmapError(`${what} did not come within ${ms} ms`, {
            code: "TIMED_OUT",
            attempted: `wait for ${what}`,
          }),
        );
      }, ms);
    });
  } finally {
    clearTimeout(timer);
    if (onAbort !== undefined) signal?.removeEventListener("abort", onAbort);
  }
}

/** Waits, but no longer than until the signal is aborted. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, Math.max(0, ms));
    signal.addEventListener("abort", done, { once: true });
  });
}
