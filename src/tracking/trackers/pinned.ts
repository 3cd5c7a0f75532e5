import type { VfioDevice } from "../../host/host.js";
import type { DirtyTracker } from "../tracker.js";
import { dmaLogTracker } from "./dma-log.js";

/**
 * The log that an mdev's driver computes from its pins: pages that are pinned, or were since the last read. It says
 * what the mdev could have written, so it names more than was written, never less.
 * @param id the device's name in its machine
 */
export function pinnedTracker(vfio: VfioDevice, id = vfio.id): DirtyTracker {
  return dmaLogTracker(vfio, "pinned", id);
}
