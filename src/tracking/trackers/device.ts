import type { VfioDevice } from "../../host/host.js";
import type { DirtyTracker } from "../tracker.js";
import { dmaLogTracker } from "./dma-log.js";

/**
 * The log that a device keeps of its own DMA, in its own memory (mlx5's page tracker).
 * @param id the device's name in its machine
 */
export function deviceTracker(vfio: VfioDevice, id = vfio.id): DirtyTracker {
  return dmaLogTracker(vfio, "device", id);
}
