import { pause } from "../migration/deadline.js";
import { publishRead } from "../migration/events.js";
import type { DirtyRead, DirtySource } from "../tracking/dirty-source.js";

/** The options of {@link watch}. */
export interface WatchOptions {
  /** The trackers, not started yet. The caller disposes it. */
  readonly source: DirtySource;
  /** Milliseconds from one read to the next. A read that takes longer is followed by the next at once. */
  readonly intervalMs: number;
  /** Aborted to end the watch. */
  readonly signal: AbortSignal;
  /** The maximum number of reads. Default: no limit. */
  readonly reads?: number;
  /** Called with each read and the milliseconds since the previous one. The read's bitmaps are valid until it resolves. */
  readonly onRead?: (read: DirtyRead, elapsedMs: number) => void | Promise<void>;
}

/**
 * Switches on the trackers of a machine that is not being migrated, and reads them at an interval. Publishes each read on the
 * channel of migrations (`round: null`). Resolves once the signal is aborted or all reads are done. The trackers stay on until
 * the source is disposed.
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
