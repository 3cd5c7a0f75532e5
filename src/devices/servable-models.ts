import { randomInt } from "node:crypto";
import { UsageError } from "../errors.js";
import { PAGE_SIZE } from "../memory/address.js";
import { DMA_ENGINE } from "./dma-engine/dma-engine.js";
import type { DeviceModel } from "./model.js";
import { createWorkloadModel, type WorkloadDescription } from "./models.js";
import { NVME } from "./nvme/nvme.js";
import {
  type ModelOption,
  type ModelOptions,
  numberOption,
  type ServableModel,
  textOption,
  WITHIN,
} from "./servable.js";
import { createSharedMemory } from "./shared-memory.js";

/*
 * The models that can be served. To add one: make it a ServableModel beside its file, and name it in the list.
 */

const RATE: ModelOption = {
  name: "rate",
  about: "megabytes (10^6) per second that it writes into its buffers; 0: idle",
  kind: "number",
  default: 50,
  max: 100_000,
};
const INCARNATION: ModelOption = {
  name: "incarnation",
  about: "32-bit number of the machine instance in its stamps; left out: random",
  kind: "number",
  max: 0xffffffff,
};
const MEMORY: ModelOption = {
  name: "memory",
  about: "bytes behind BAR 2, which peers write to and clients may map; 0: none",
  kind: "size",
  default: 0,
  max: 2 ** 30,
};
const SEED: ModelOption = { name: "seed", about: "of contents that are made up", kind: "number", default: 1 };

/**
 * A model of the workload: stamped DMA into buffers that its user's driver names in its buffer table (BAR 0, see
 * REGISTER.BUFFERS).
 */
function workloadModel(
  { name, summary, options = [] }: { name: string; summary: string; options?: readonly ModelOption[] },
  describe: (
    common: { id: string; load: WorkloadDescription["load"]; p2pTargets: string[] },
    options: ModelOptions,
  ) => {
    description: WorkloadDescription;
    memoryBytes: number;
  },
): ServableModel {
  return {
    name,
    summary,
    options: [RATE, ...options, INCARNATION],
    needsEventLoop: true,
    feed(options, model) {
      const { udpPort } = model.counters();
      const rate = numberOption(options, "rate");
      return udpPort === undefined || rate === 0 ? undefined : { port: udpPort, rate };
    },
    create(options, id): DeviceModel {
      const load = { rate: numberOption(options, "rate"), footprint: PAGE_SIZE };
      const { description, memoryBytes } = describe({ id, load, p2pTargets: [] }, options);
      if (memoryBytes % PAGE_SIZE !== 0) {
        throw new UsageError(`${name}: memory of ${memoryBytes} bytes`, {
          code: "BAD_OPTION",
          remedy: `give a multiple of ${PAGE_SIZE}`,
        });
      }
      return createWorkloadModel(description, {
        incarnation: (options.incarnation as number | undefined) ?? randomInt(1, 2 ** 32),
        seed: (options.seed as number | undefined) ?? 1,
        buffers: [],
        p2p: [],
        ...(memoryBytes > 0 ? createSharedMemory(`${id}-bar2`, memoryBytes) : { memory: null }),
      });
    },
  };
}

const memoryOf = (options: ModelOptions) => numberOption(options, "memory");

/** All models that `dirtmap device` and `serveDevice` serve. */
export const SERVABLE_MODELS: readonly ServableModel[] = [
  workloadModel(
    { name: "mlx5", summary: "a NIC's virtual function that logs its own DMA", options: [MEMORY] },
    (common, options) => ({
      description: {
        model: "mlx5",
        ...common,
        iommu: "client",
        dmaLogging: {
          pageSizes: [4096, 65536, 2 * 2 ** 20],
          maxRanges: 8,
          addressWidth: 52,
          readableWhen: "always",
        },
      },
      memoryBytes: memoryOf(options),
    }),
  ),
  workloadModel(
    { name: "nic", summary: "a NIC without a log: its client tracks it, or nobody does", options: [MEMORY] },
    (common, options) => ({
      description: { model: "nic", ...common, iommu: "client" },
      memoryBytes: memoryOf(options),
    }),
  ),
  workloadModel(
    {
      name: "blk",
      summary: "a disk without a log that reads a file into memory, over and over",
      options: [
        { name: "file", about: "the file that it reads; left out: one is made from the seed", kind: "text" },
        WITHIN,
        SEED,
        MEMORY,
      ],
    },
    (common, options) => {
      const file = textOption(options, "file");
      const within = textOption(options, "within");
      return {
        description: { model: "blk", ...common, iommu: "client", file, within },
        memoryBytes: memoryOf(options),
      };
    },
  ),
  workloadModel(
    {
      name: "vgpu",
      summary: "a GPU with video memory that clients may map",
      options: [
        { name: "vram", about: "bytes of video memory", kind: "size", default: 16 * 2 ** 20, min: 4096, max: 2 ** 30 },
      ],
    },
    (common, options) => {
      const vram = numberOption(options, "vram");
      return { description: { model: "vgpu", ...common, sharedTracker: false, vram }, memoryBytes: vram };
    },
  ),
  NVME,
  DMA_ENGINE,
];

/** @throws UsageError `NO_SUCH_MODEL` */
export function servableModel(name: string): ServableModel {
  const model = SERVABLE_MODELS.find((candidate) => candidate.name === name);
  if (model !== undefined) return model;
  throw new UsageError(`there is no model '${name}' that can be served`, {
    code: "NO_SUCH_MODEL",
    remedy: `there are: ${SERVABLE_MODELS.map((candidate) => candidate.name).join(", ")}`,
  });
}
