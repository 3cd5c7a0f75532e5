import { describe, expect, it } from "vitest";
import { type MachineDescription, machineSchema } from "../../../host/description.js";
import { MiB } from "../../../memory/address.js";
import { checkMemory } from "./check-memory.js";

const LOAD = { rate: 1, footprint: MiB };

function machineOf(devices: object[], more: object = {}): MachineDescription {
  return machineSchema.parse({ memory: 16 * MiB, vcpus: { count: 1 }, devices, ...more });
}

const many = (device: object) => Array.from({ length: 256 }, (_, i) => ({ id: `dev${i}`, load: LOAD, ...device }));

it("a small machine fits", () => {
  checkMemory(machineOf([{ id: "gpu0", model: "vgpu", load: LOAD }]), "destination");
});

describe("what a description asks for is looked at before anything is allocated:", () => {
  it.each([
    ["its devices' memory", many({ model: "vgpu", vram: 2 ** 30 })],
    ["the processes that are started for its devices", many({ model: "nic", serve: true })],
  ])("%s counts", (_what, devices) => {
    // The guest's own would just fit.
    const machine = { ...machineOf(devices), memory: Math.floor(process.availableMemory() / MiB) * MiB };
    expect(() => checkMemory(machine, "destination")).toThrow(
      expect.objectContaining({ code: "MEMORY_DOES_NOT_FIT", message: expect.stringContaining("for its devices") }),
    );
  });

  it("a destination's operator is told nothing that only the source could do", () => {
    const machine = { ...machineOf([]), memory: 2 ** 45 };
    const refusal = (where: 1 | "destination") => {
      try {
        return checkMemory(machine, where);
      } catch (error) {
        return error as { remedy: string };
      }
    };
    expect(refusal("destination")).toMatchObject({ remedy: "migrate to a destination that has more" });
    expect(refusal(1)).toMatchObject({ remedy: expect.stringContaining("--memory") });
  });

  it.each([
    ["memory", { memory: 2 ** 46 }],
    ["IOMMUs", { iommus: Array.from({ length: 65 }, (_, i) => ({ id: `iommu${i}`, format: "amd-v1" })) }],
    ["devices", { devices: [...many({ model: "vgpu" }), { id: "more", model: "vgpu", load: LOAD }] }],
    ["peers", { devices: [{ id: "dev0", model: "vgpu", load: LOAD, p2pTargets: Array(257).fill("dev0") }] }],
  ])("more %s than any machine has are refused as they are read", (_what, more) => {
    const read = machineSchema.safeParse({ memory: 16 * MiB, vcpus: { count: 1 }, devices: [], ...more });
    expect(read.success).toBe(false);
  });
});
