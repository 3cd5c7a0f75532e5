import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { Iommufd, ObjectId } from "../../host/host.js";
import { PAGE_SIZE } from "../../memory/address.js";
import type { DomainChoice } from "../choice.js";
import { claimTracker } from "../claims.js";
import { type Owner, ownerName } from "../owner.js";
import type { DirtyTracker, TrackedRange, TrackingSession } from "../tracker.js";
import { SessionState, startSession } from "./session.js";

/** Whose dirty bits are read. */
export interface IommuTrackerOptions {
  readonly iommufd: Iommufd;
  /** The HWPT, or the emulated IOMMU. */
  readonly hwpt: ObjectId;
  readonly type?: DomainChoice["type"];
  /** The devices that are attached to it. */
  readonly owner: Owner;
}

/**
 * The tracker of an HWPT, in which the system IOMMU sets dirty bits, or of an emulated-IOMMU object, in which mdevs do
 * (IOMMU_HWPT_SET_DIRTY_TRACKING, IOMMU_HWPT_GET_DIRTY_BITMAP).
 *
 * Areas are read whole, one by one: the kernel cleans whole leaves even where part of one was asked for, and stops at a
 * hole in the mapping without saying so. Mappings made while it runs are tracked too.
 */
export function iommuTracker({ iommufd, hwpt, owner, type = "hwpt" }: IommuTrackerOptions): DirtyTracker {
  const name = ownerName(owner);
  return {
    kind: "iommu",
    owner,
    start: async ({ signal }) => {
      const claim = claimTracker(iommufd, `HWPT ${hwpt}`, name);
      return startSession(claim, signal, async () => {
        await iommufd.setDirtyTracking(hwpt, true);
        const state = new SessionState(name, claim, () => iommufd.setDirtyTracking(hwpt, false));
        return new IommuSession({ iommufd, hwpt, type, state });
      });
    },
  };
}

/** Bytes per bit that are asked for. A finer grain than the leaves' costs nothing: the kernel repeats a leaf's bit. */
const BIT = PAGE_SIZE;

class IommuSession implements TrackingSession {
  readonly kind = "iommu";
  readonly readableWhen = "always";
  readonly namesAll = false;
  /** IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR exists for HWPTs only. */
  readonly peek?: (range: TrackedRange) => Promise<DirtyBitmap>;
  readonly #iommufd: Iommufd;
  readonly #hwpt: ObjectId;
  readonly #state: SessionState;
  #largestLeaf: number | undefined;

  constructor({ iommufd, hwpt, type, state }: Omit<Required<IommuTrackerOptions>, "owner"> & { state: SessionState }) {
    this.#iommufd = iommufd;
    this.#hwpt = hwpt;
    this.#state = state;
    if (type === "hwpt") this.peek = (range) => this.#get(range, false);
  }

  get granule(): number {
    return this.#largestLeaf ?? BIT;
  }

  plan(areas: readonly TrackedRange[]) {
    return { reads: areas, uncovered: [] };
  }

  readAndClear(range: TrackedRange): Promise<DirtyBitmap> {
    return this.#state.reading(range, () => this.#get(range, true));
  }

  async #get({ iova, length }: TrackedRange, clear: boolean): Promise<DirtyBitmap> {
    const into = new DirtyBitmap({ iova, length, granule: BIT });
    const query = { iova, length, pageSize: BIT, into, clear };
    const { leafSizes } = await this.#iommufd.getDirtyBitmap(this.#hwpt, query);
    for (const size of leafSizes) this.#largestLeaf = Math.max(this.#largestLeaf ?? size, size);
    return into;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#state.close();
  }
}
