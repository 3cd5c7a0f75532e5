import { describe, expect, test } from "vitest";
import { MiB } from "../memory/address.js";
import { arrange } from "./arrangement.js";
import { DEFAULT_POLICY, type Policy } from "./choice.js";
import { type FakeDeviceOptions, fakeMachine } from "./fake-machine.test.helper.js";
import { chooseTrackers } from "./policy.js";
import { probeMachine } from "./probe.js";

async function arranged(devices: FakeDeviceOptions[], policy: Partial<Policy>) {
  const machine = await fakeMachine(devices);
  const choices = chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, ...policy });
  machine.iommufd.log.length = 0;
  const arrangement = await arrange(machine, choices);
  return { machine, arrangement };
}

describe("devices are attached as was chosen", () => {
  test("to an IOAS with small pages that maps all that theirs does, BARs of peers included", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }, { id: "nic1" }], {});
    const { iommufd, ioas } = machine;
    expect(arrangement.domains.map(({ devices }) => devices)).toEqual([["nic0"], ["nic1"]]);
    expect(iommufd.ioases.size).toBe(2);
    const [, small] = [...iommufd.ioases.entries()].find(([id]) => id !== ioas) ?? [];
    expect(small?.hugePages).toBe(false);
    expect(small?.areas).toEqual(iommufd.ioases.get(ioas)?.areas);
    expect(arrangement.ioases).toHaveLength(2);
    machine.device("nic0").write(300);
    await arrangement[Symbol.asyncDispose]();
    expect(iommufd.ioases.size).toBe(1);
    machine.device("nic0").write(300);
  });

  test("to their IOAS's own large pages if the granule is that of large pages", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }], { granules: { nic0: 2 * MiB } });
    expect(machine.iommufd.ioases.size).toBe(1);
    expect(arrangement.domains[0].dirtyTracking).toBe(true);
    await arrangement[Symbol.asyncDispose]();
  });

  test("to one HWPT if they share it, and to one each where they sit behind different IOMMUs", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }, { id: "nic1", iommu: "iommu1" }, { id: "nic2" }], {
      domain: "shared",
    });
    expect(arrangement.domains.map(({ devices }) => devices)).toEqual([["nic0", "nic2"], ["nic1"]]);
    await arrangement[Symbol.asyncDispose]();
    expect([...machine.iommufd.domains.values()].every(({ automatic }) => automatic)).toBe(true);
  });

  test("to the emulated IOMMU, which mdevs share; other mdevs stay where they are", async () => {
    const vgpu = (id: string, sharedTracker: boolean) => ({ id, mdev: true, log: {}, sharedTracker });
    const { machine, arrangement } = await arranged([vgpu("v0", true), vgpu("v1", true), vgpu("v2", false)], {});
    expect(arrangement.domains).toMatchObject([{ type: "emulated", devices: ["v0", "v1"], dirtyTracking: true }]);
    expect(machine.iommufd.log.filter((line) => line.startsWith("attach"))).toHaveLength(2);
    await arrangement[Symbol.asyncDispose]();
  });
});

describe("what was arranged is undone", () => {
  test("in reverse order", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }, { id: "nic1" }], {});
    const { log } = machine.iommufd;
    log.length = 0;
    await arrangement[Symbol.asyncDispose]();
    expect(log.map((line) => line.replace(/\d+/g, "N"))).toEqual([
      "attach N to IOAS N",
      "destroy N",
      "attach N to IOAS N",
      "destroy N",
      "destroy N",
    ]);
    expect(log[0]).toBe(`attach ${machine.device("nic1").deviceId} to IOAS ${machine.ioas}`);
  });

  test("where it fails half-way", async () => {
    const machine = await fakeMachine([{ id: "nic0" }, { id: "nic1" }]);
    const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
    machine.device("nic1").attach = async () => {
      throw new Error("no");
    };
    await expect(arrange(machine, choices)).rejects.toThrow("no");
    expect(machine.iommufd.ioases.size).toBe(1);
    expect([...machine.iommufd.domains.values()].every(({ automatic }) => automatic)).toBe(true);
  });
});
