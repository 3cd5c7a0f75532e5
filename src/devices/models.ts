import type { DeviceDescription } from "../host/description.js";
import { Blk, blkInfo } from "./blk.js";
import { Mlx5, mlx5Info } from "./mlx5.js";
import type { ModelInfo } from "./model.js";
import { Nic, nicInfo } from "./nic.js";
import type { ModelWiring, PciModel } from "./pci-model.js";
import { Replay, replayInfo } from "./replay.js";
import { Vgpu, vgpuInfo } from "./vgpu.js";

/*
 * The models by name. To add one: describe it in host/description.ts, write its file beside these, name it here twice.
 */

/**
 * What a device's model says of itself, without making one.
 * @param memoryBytes behind its BAR 2; 0: none. A vGPU's is its video memory, whatever is given.
 */
export function modelInfo(description: DeviceDescription, memoryBytes: number): ModelInfo {
  switch (description.model) {
    case "mlx5":
      return mlx5Info(description, memoryBytes);
    case "nic":
      return nicInfo(memoryBytes);
    case "blk":
      return blkInfo(memoryBytes);
    case "vgpu":
      return vgpuInfo(description);
    case "replay":
      return replayInfo(description, memoryBytes);
  }
}

/** Makes a device of its model. It is started by its host. */
export function createModel(description: DeviceDescription, wiring: ModelWiring): PciModel {
  switch (description.model) {
    case "mlx5":
      return new Mlx5(description, wiring);
    case "nic":
      return new Nic(description, wiring);
    case "blk":
      return new Blk(description, wiring);
    case "vgpu":
      return new Vgpu(description, wiring);
    case "replay":
      return new Replay(description, wiring);
  }
}
