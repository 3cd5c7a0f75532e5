import { UsageError } from "../errors.js";
import type { DrivenModelName, ModelledDescription } from "../host/description.js";
import { Blk, blkInfo } from "./blk.js";
import { DmaEngine, dmaEngineInfo } from "./dma-engine/dma-engine.js";
import { Mlx5, mlx5Info } from "./mlx5.js";
import type { DeviceModel, ModelInfo } from "./model.js";
import { Nic, nicInfo } from "./nic.js";
import { NVME_INFO, Nvme } from "./nvme/nvme.js";
import type { ModelWiring, PciModel } from "./pci-model.js";
import { Replay, replayInfo } from "./replay.js";
import { Vgpu, vgpuInfo } from "./vgpu.js";

/*
 * The models by name. To add one: describe it in host/description.ts, write its file beside these, name it here, as often as the others are.
 */

/**
 * What a device's model says of itself, without making one.
 * @param memoryBytes behind its BAR 2; 0: none. A vGPU's is its video memory, whatever is given.
 */
export function modelInfo(description: ModelledDescription, memoryBytes: number): ModelInfo {
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
    case "nvme":
      return NVME_INFO;
    case "dma-engine":
      return dmaEngineInfo(description.memory);
  }
}

/**
 * Makes a device of its model. It is started by its host.
 * @throws UsageError `BAD_DISK_FILE` for a disk without its file
 */
export function createModel(description: ModelledDescription, wiring: ModelWiring): DeviceModel {
  switch (description.model) {
    case "nvme":
      return new Nvme({
        file: fileOf(description),
        within: description.within,
        blockBytes: NVME_BLOCK_BYTES,
        incoming: wiring.incoming === true,
      });
    case "dma-engine":
      return new DmaEngine({ memory: new Uint8Array(description.memory) });
    default:
      return createWorkloadModel(description, wiring);
  }
}

/** Makes a device whose workload is built in: {@link createModel} of the others needs a driver. */
export function createWorkloadModel(description: WorkloadDescription, wiring: ModelWiring): PciModel {
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

/** A device whose workload is built in. */
export type WorkloadDescription = Exclude<ModelledDescription, { model: DrivenModelName }>;

const NVME_BLOCK_BYTES = 512;

function fileOf({ id, file }: Extract<ModelledDescription, { model: "nvme" }>): string {
  if (file !== undefined) return file;
  throw new UsageError(`the disk of '${id}' has no file`, { code: "BAD_DISK_FILE", remedy: "name one: file" });
}
