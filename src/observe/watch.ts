import { publishRead } from "../migration/events.js";
import type { DirtyRead, DirtySource } from "../tracking/dirty-source.js";

/** How the trackers of a machine that is not being migrated are watched. */
export interface WatchOptions {
  /** Not started yet; it stays the caller's, who disposes it. */
  readonly source: DirtySource;
  /** From one read to the next; a read that takes longer is followed by the next at once. */
  readonly intervalMs: number;
  /** Reads until this is aborted. */
  readonly signal: AbortSignal;
  /** Reads at most. Default: no limit. */
  readonly reads?: number;
  /** Called with each read, whose bitmaps are valid until it resolves, and the time since the one before. */
  readonly onRead?: (read: DirtyRead, elapsedMs: number) => void | Promise<void>;
}

/**
 * Switches a machine's trackers on and reads them at an interval, publishing each read on the migration's channel
 * (`round: null`). Resolves once the signal is aborted or all reads are done: the trackers stay on until the source is
 * disposed.
 * @throws DirtmapError of the source, and what `onRead` throws
 */
export async function watch({ source, intervalMs, signal, reads, onRead }: WatchOptions): Promise<void> {
  if (signal.aborted) return;
  await source.start(signal);
  const startedAt = performance.now();
  let readAt = startedAt;
  for (let n = 1; !signal.aborted && n <= (reads ?? Number.POSITIVE_INFINITY); n++) {
    await pause(startedAt + n * intervalMs - performance.now(), signal);
    if (signal.aborted) return;
    const read = await source.read({ quiesced: false });
    const now = performance.now();
    const elapsedMs = now - readAt;
    readAt = now;
    publishRead(read, { atMs: now - startedAt, round: null, elapsedMs });
    await onRead?.(read, elapsedMs);
  }
}

/** Waits, but no longer than until the signal is aborted. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
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
