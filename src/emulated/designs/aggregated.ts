import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { contains, type IovaStretch, overlap } from "../../bitmap/ranges.js";
import type { ContainerMember, ContainerTracking } from "../../host/designs.js";
import type { BitmapQuery } from "../../host/host.js";
import { hex, PAGE_SIZE } from "../../memory/address.js";
import { UapiError } from "../../uapi/errno.js";
import { type Reporter, reportersOf, startAll, stopAll } from "./reporters.js";

/**
 * The design in which drivers report into the container: it holds one bitmap of all that is mapped, made when tracking
 * starts. A read has every tracker add its bits to that (through a bitmap of its own only where its granule is coarser, and
 * may have found something beyond the area asked for), then copies the area out. Who reported what is lost on the way. A
 * device without a tracker makes all of it dirty, unless it opted out.
 */
export class AggregatedContainer implements ContainerTracking {
  readonly reportsEverything: boolean;
  readonly #reporters: readonly Reporter[];
  readonly #mapped: readonly IovaStretch[];
  /** The shared bitmap, area by area; empty while tracking is off. */
  #shared: readonly DirtyBitmap[] = [];

  constructor(members: readonly ContainerMember[], mapped: readonly IovaStretch[]) {
    this.#reporters = reportersOf(members);
    this.#mapped = mapped;
    this.reportsEverything = members.some(({ tracker, optOut }) => tracker === null && !optOut);
  }

  get readableWhen(): "always" | "quiesced" {
    return this.#reporters.some(({ readableWhen }) => readableWhen === "quiesced") ? "quiesced" : "always";
  }

  async start(): Promise<void> {
    await startAll(this.#reporters, this.#mapped);
    this.#shared = this.#mapped.map((area) => new DirtyBitmap({ ...area, granule: PAGE_SIZE }));
  }

  async getBitmap({ iova, length, into }: Omit<BitmapQuery, "pageSize">): Promise<void> {
    const shared = this.#shared.find((bitmap) => bitmap.iova === iova && bitmap.length === length);
    if (shared === undefined) {
      throw new UapiError("EINVAL", {
        syscall: "container GET_BITMAP",
        attempted: `read ${hex(length)} bytes at ${hex(iova)}`,
        remedy: "start tracking, and ask for one mapped area",
      });
    }
    for (const reporter of this.#reporters) {
      for (const stretch of reporter.reads({ iova, length })) {
        const home = this.#shared.find((bitmap) => bitmap.granule === reporter.granule && contains(bitmap, stretch));
        if (home !== undefined) {
          await reporter.report(stretch, home);
          continue;
        }
        const found = new DirtyBitmap({ ...stretch, granule: reporter.granule });
        await reporter.report(stretch, found);
        for (const bitmap of this.#shared) if (overlap(bitmap, stretch)) bitmap.or(found);
      }
    }
    if (this.reportsEverything) shared.setAll();
    into.or(shared);
    shared.clear();
  }

  async stop(): Promise<void> {
    this.#shared = [];
    await stopAll(this.#reporters);
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
