import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { IovaStretch } from "../../bitmap/ranges.js";
import type { ContainerMember, ContainerTracking } from "../../host/designs.js";
import type { BitmapQuery } from "../../host/host.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { UapiError } from "../../uapi/errno.js";
import { type Reporter, reportersOf, startAll, stopAll } from "./reporters.js";

/**
 * The design with one call and no shared state: the kernel iterates over all trackers, each of which adds its bits to
 * the caller's bitmap. The call speaks for the container as a whole, so a device without a tracker makes all of it
 * dirty: there is nobody to ask whether it is suspended. And with no state, what a tracker cleans beyond the area that
 * was asked for can't be kept, so a log's granule must not touch two areas.
 */
export class IteratingContainer implements ContainerTracking {
  readonly reportsEverything: boolean;
  readonly #reporters: readonly Reporter[];
  readonly #mapped: readonly IovaStretch[];

  constructor(members: readonly ContainerMember[], mapped: readonly IovaStretch[]) {
    this.#reporters = reportersOf(members);
    this.#mapped = mapped;
    this.reportsEverything = members.some(({ tracker }) => tracker === null);
  }

  get readableWhen(): "always" | "quiesced" {
    return this.#reporters.some(({ readableWhen }) => readableWhen === "quiesced") ? "quiesced" : "always";
  }

  async start(): Promise<void> {
    await startAll(this.#reporters, this.#mapped);
    const coarse = this.#reporters.find(({ granule }) => touchesTwo(this.#mapped, BigInt(granule)));
    if (coarse === undefined) return;
    await this.stop();
    throw new UapiError("EINVAL", {
      syscall: "container START",
      attempted: `track with a granule of ${coarse.granule} bytes, which two mapped areas have in common`,
      remedy: "ask for a smaller granule: without state, the kernel can't keep the other area's bit",
    });
  }

  async getBitmap({ iova, length, into }: Omit<BitmapQuery, "pageSize">): Promise<void> {
    for (const reporter of this.#reporters) {
      if (reporter.granule === PAGE_SIZE) {
        await reporter.report({ iova, length }, into);
        continue;
      }
      const unit = BigInt(reporter.granule);
      const start = iova - (iova % unit);
      const end = ((iova + length + unit - 1n) / unit) * unit;
      const found = new DirtyBitmap({ iova: start, length: end - start, granule: reporter.granule });
      await reporter.report({ iova: start, length: end - start }, found);
      into.or(found);
    }
    if (this.reportsEverything) into.setAll();
  }

  async stop(): Promise<void> {
    await stopAll(this.#reporters);
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** True where the last granule of one area is the first of the next. Areas are sorted. */
function touchesTwo(mapped: readonly IovaStretch[], granule: bigint): boolean {
  return mapped.some(({ iova }, index) => {
    if (index === 0) return false;
    const before = mapped[index - 1];
    return (before.iova + before.length - 1n) / granule === iova / granule;
  });
}
