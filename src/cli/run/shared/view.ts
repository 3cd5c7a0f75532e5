import type { TopHeader } from "../../../observe/top/state.js";
import { TopView } from "../../../observe/top/view.js";
import type { ViewOptions } from "../../input/options/watch.js";
import { mayColor, out } from "../../output.js";

/*
 * The view of `dirtmap top` and `dirtmap replay`.
 */

/** Opens it on standard output. */
export function openView(header: TopHeader, { once = false, json = false }: ViewOptions): TopView {
  return new TopView(header, { stream: out, color: mayColor(out), once, json });
}

/** Aborted with the signal, and when the duration is over. */
export function endOf({ duration }: ViewOptions, signal: AbortSignal): AbortSignal {
  return duration === undefined ? signal : AbortSignal.any([signal, AbortSignal.timeout(duration)]);
}

/** Bytes since the last count. What counts less than before was reset, and began anew. */
export function grown(before: ReadonlyMap<string, number>, now: ReadonlyMap<string, number>): Record<string, number> {
  return Object.fromEntries(
    [...now].map(([writer, bytes]) => {
      const last = before.get(writer) ?? 0;
      return [writer, bytes >= last ? bytes - last : bytes];
    }),
  );
}
