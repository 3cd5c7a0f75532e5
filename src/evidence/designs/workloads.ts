import { type MachineDescription, machineSchema } from "../../host/description.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { DEFAULT_POLICY, type Policy } from "../../tracking/choice.js";
import type { WorkloadName } from "./workload-names.js";

/*
 * The workloads on which the designs are compared: the mailing list thread's cases and pairs, each repeated until it has as
 * many devices as are asked for, and what the thread calls the only kind of shared tracker.
 */

/** How large the machine is that a workload runs on. */
export interface PopulationOptions {
  readonly devices: number;
  /** Bytes of guest memory. */
  readonly memory: number;
  /** Pages that each device writes over and over. */
  readonly footprint: number;
  /** Megabytes (10^6) per second that each device writes. */
  readonly rate: number;
  /** Share of memory that isn't zero. */
  readonly fill?: number;
}

/** A machine with a workload's devices, and what its operator wants of it. */
export interface Population {
  readonly description: MachineDescription;
  readonly policy: Policy;
  /** Ids of devices that go on writing while the machine is migrated: all but the suspended. */
  readonly active: readonly string[];
}

/** Video memory is of no interest here, and 64 times the usual is much. */
const VRAM_BYTES = 64 * 1024;

/**
 * A workload with that many devices, every other one of the pair's second kind; one device alone is of the first kind. No
 * vCPU writes: what is compared is how devices are tracked.
 */
export function population(workload: WorkloadName, options: PopulationOptions): Population {
  const { devices: count, memory, footprint, rate, fill = 0 } = options;
  const load = { rate, footprint: footprint * PAGE_SIZE };
  const devices = Array.from({ length: count }, (_, index) => {
    const model = index % 2 === 0 ? FIRST[workload] : SECOND[workload];
    const id = `${model}${index}`;
    if (model === "vgpu") return { id, model, load, vram: VRAM_BYTES, sharedTracker: workload === "shared-mdevs" };
    return { id, model, load, iommu: "iommu0" };
  });
  const description = machineSchema.parse({
    memory,
    fill,
    vcpus: { count: 0 },
    iommus: [{ id: "iommu0", format: "amd-v1", dirtyTracking: workload !== "c" }],
    devices,
  });
  const vfs = devices.filter(({ model }) => model === "mlx5").map(({ id }) => id);
  const policy: Policy = {
    ...DEFAULT_POLICY,
    trackers: Object.fromEntries(vfs.map((id) => [id, "device"])),
    domain: workload === "a" || workload === "shared-mdevs" ? "shared" : "per-device",
    untracked: workload === "c" ? "suspend" : "everything",
  };
  const suspended = workload === "c" ? devices.filter(({ model }) => model === "nic").map(({ id }) => id) : [];
  return { description, policy, active: devices.map(({ id }) => id).filter((id) => !suspended.includes(id)) };
}

const FIRST = {
  a: "mlx5",
  b: "mlx5",
  c: "mlx5",
  A: "mlx5",
  B: "mlx5",
  mdevs: "vgpu",
  "shared-mdevs": "vgpu",
} as const satisfies Record<WorkloadName, string>;

const SECOND = {
  a: "nic",
  b: "mlx5",
  c: "nic",
  A: "vgpu",
  B: "nic",
  mdevs: "vgpu",
  "shared-mdevs": "vgpu",
} as const satisfies Record<WorkloadName, string>;
