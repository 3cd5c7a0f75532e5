import { describe, expect, test } from "vitest";
import type { FakeDeviceOptions } from "../../test/support/fake-host/device.js";
import { changesOf, fakeMachine, madeAndLeft } from "../../test/support/fake-host/machine.js";
import { MiB } from "../memory/address.js";
import { arrange } from "./arrangement.js";
import { DEFAULT_POLICY, type Policy } from "./choice.js";
import { chooseTrackers } from "./policy.js";
import { probeMachine } from "./probe.js";

async function arranged(devices: FakeDeviceOptions[], policy: Partial<Policy>) {
  const machine = await fakeMachine(devices);
  const choices = chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, ...policy });
  const before = changesOf(machine.iommufd).length;
  const arrangement = await arrange(machine, choices);
  return { machine, arrangement, changes: () => changesOf(machine.iommufd).slice(before) };
}

describe("devices are attached as was chosen", () => {
  test("to an IOAS with small pages that maps all that theirs does, BARs of peers included", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }, { id: "nic1" }], {});
    const { iommufd, ioas } = machine;
    expect(arrangement.domains.map(({ devices }) => devices)).toEqual([["nic0"], ["nic1"]]);
    const [small, ...more] = madeAndLeft(iommufd).ioases.filter((id) => id !== ioas);
    expect(more).toEqual([]);
    expect(await iommufd.getOption({ option: "HUGE_PAGES", ioas: small })).toBe(0);
    const mapped = iommufd.script
      .done("map")
      .map(([, { length }, { iova, writeable }]) => ({ iova, length, writeable }));
    const copied = iommufd.script
      .done("copy")
      .filter(([, to]) => to.ioas === small)
      .map(([{ length }, { iova, writeable }]) => ({ iova, length: Number(length), writeable }));
    expect(copied).toEqual(mapped);
    expect(arrangement.ioases).toHaveLength(2);
    await machine.device("nic0").write(300);
    await arrangement[Symbol.asyncDispose]();
    expect(madeAndLeft(iommufd).ioases).toEqual([ioas]);
    await machine.device("nic0").write(300);
  });

  test("to their IOAS's own large pages if the granule is that of large pages", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }], { granules: { nic0: 2 * MiB } });
    expect(madeAndLeft(machine.iommufd).ioases).toEqual([machine.ioas]);
    expect(arrangement.domains[0].dirtyTracking).toBe(true);
    await arrangement[Symbol.asyncDispose]();
  });

  test("to one HWPT if they share it, and to one each where they sit behind different IOMMUs", async () => {
    const { machine, arrangement } = await arranged([{ id: "nic0" }, { id: "nic1", iommu: "iommu1" }, { id: "nic2" }], {
      domain: "shared",
    });
    expect(arrangement.domains.map(({ devices }) => devices)).toEqual([["nic0", "nic2"], ["nic1"]]);
    await arrangement[Symbol.asyncDispose]();
    expect(madeAndLeft(machine.iommufd).hwpts).toEqual([]);
  });

  test("to the emulated IOMMU, which mdevs share; other mdevs stay where they are", async () => {
    const vgpu = (id: string, sharedTracker: boolean) => ({ id, mdev: true, log: {}, sharedTracker });
    const { changes, arrangement } = await arranged([vgpu("v0", true), vgpu("v1", true), vgpu("v2", false)], {});
    expect(arrangement.domains).toMatchObject([{ type: "emulated", devices: ["v0", "v1"], dirtyTracking: true }]);
    expect(changes().filter((line) => line.startsWith("attach"))).toHaveLength(2);
    await arrangement[Symbol.asyncDispose]();
  });
});

describe("what was arranged is undone", () => {
  test("in reverse order", async () => {
    const { machine, arrangement, changes } = await arranged([{ id: "nic0" }, { id: "nic1" }], {});
    const arrangedBy = changes().length;
    await arrangement[Symbol.asyncDispose]();
    const undone = changes().slice(arrangedBy);
    expect(undone.map((line) => line.replace(/\d+/g, "N"))).toEqual([
      "attach N to IOAS N",
      "destroy N",
      "attach N to IOAS N",
      "destroy N",
      "destroy N",
    ]);
    expect(undone[0]).toBe(`attach ${machine.device("nic1").deviceId} to IOAS ${machine.ioas}`);
  });

  test("where it fails half-way", async () => {
    const machine = await fakeMachine([{ id: "nic0" }, { id: "nic1" }]);
    const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
    machine.device("nic1").attach = async () => {
      throw new Error("no");
    };
    await expect(arrange(machine, choices)).rejects.toThrow("no");
    expect(madeAndLeft(machine.iommufd).ioases).toEqual([machine.ioas]);
    expect(madeAndLeft(machine.iommufd).hwpts).toEqual([]);
  });
});
