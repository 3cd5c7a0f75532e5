import type { VfioDevice } from "../../host/host.js";
import type { DirtyTracker } from "../tracker.js";
import { dmaLogTracker } from "./dma-log.js";

/** The log that a device keeps of its own DMA, in its own memory (mlx5's page tracker). */
export function deviceTracker(vfio: VfioDevice): DirtyTracker {
  return dmaLogTracker(vfio, "device");
}
