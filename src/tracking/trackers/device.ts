import type { VfioDevice } from "../../host/host.js";
import type { DirtyTracker } from "../tracker.js";
import { dmaLogTracker } from "./dma-log.js";

/**
 * The log that a device keeps of its own DMA, in its own memory (mlx5's page tracker).
 * @param owner the device's name in its machine
 */
export function deviceTracker(vfio: VfioDevice, owner = vfio.id): DirtyTracker {
  return dmaLogTracker(vfio, "device", owner);
}
