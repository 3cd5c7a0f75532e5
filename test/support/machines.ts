import type { z } from "zod";
import { type MachineDescription, machineSchema } from "../../src/host/description.js";
import { MiB } from "../../src/memory/address.js";

/*
 * Machines for tests: small, with slow devices, so that a busy computer keeps up.
 */

type MachineInput = z.input<typeof machineSchema>;
type DeviceInput = MachineInput["devices"][number];

/** What every device of a test's machine does unless it says otherwise. */
export const LOAD = { rate: 1, footprint: 256 * 1024 };

/** Devices with {@link LOAD}, behind `iommu0`. */
export const VF = { id: "vf0", model: "mlx5", iommu: "iommu0", load: LOAD } as const satisfies DeviceInput;
export const NIC = { id: "nic0", model: "nic", iommu: "iommu0", load: LOAD } as const satisfies DeviceInput;
export const DISK = { id: "disk0", model: "blk", iommu: "iommu0", load: LOAD } as const satisfies DeviceInput;
export const GPU = { id: "gpu0", model: "vgpu", vram: 64 * 1024, load: LOAD } as const satisfies DeviceInput;

/** A small machine: one vCPU, one AMD IOMMU, and what the test adds. */
export function machineOf(devices: readonly DeviceInput[], more: Partial<MachineInput> = {}): MachineDescription {
  return machineSchema.parse({
    memory: 16 * MiB,
    fill: 0.2,
    vcpus: { count: 1, rate: 1, footprint: 128 * 1024 },
    iommus: [{ id: "iommu0", format: "amd-v1" }],
    devices,
    ...more,
  });
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
