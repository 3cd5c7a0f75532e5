import { describe, expect, it } from "vitest";
import { machineSchema, withoutPaths } from "../../host/description.js";
import { MiB } from "../../memory/address.js";
import { type Granted, grantsOf, withGranted } from "./granted.js";

const LOAD = { rate: 1, footprint: MiB };
const BEHIND = { iommu: "iommu0", load: LOAD };

function machineOf(...devices: object[]) {
  return machineSchema.parse({
    memory: 16 * MiB,
    vcpus: { count: 1, rate: 1, footprint: 65536 },
    iommus: [{ id: "iommu0", format: "amd-v1" }],
    devices,
  });
}

const NVME = { id: "disk0", model: "nvme", file: "/at/source/disk.img", ...BEHIND };
const BLK = { id: "disk1", model: "blk", file: "/at/source/other.img", ...BEHIND };
const REPLAY = { id: "dev0", model: "replay", trace: "/at/source/run.dtrc", iommu: "iommu0" };
const SERVED = {
  id: "vf0",
  model: "mlx5",
  socket: "/at/source/vf0",
  destinationSocket: "/named/by/source",
  load: LOAD,
};
const STARTED = { id: "disk2", model: "nvme", serve: true, file: "/at/source/third.img", load: LOAD };
const ALL = [NVME, BLK, REPLAY, SERVED, STARTED];

const NOTHING: Granted = { files: {}, sockets: {} };

/** What a destination makes of a machine that a source describes. */
function arrived(devices: object[], granted: Granted) {
  const { description, named } = withoutPaths(machineOf(...devices));
  return withGranted(description, named, granted);
}

describe("a machine that arrives", () => {
  it("has no path that its source has named", () => {
    const { description, named } = withoutPaths(machineOf({ ...NVME, within: "/" }, BLK, REPLAY, SERVED, STARTED));
    expect(JSON.stringify(description)).not.toMatch(/source|within/);
    // Which devices have one of which kind stays known.
    expect(description.devices.map((device) => ["file" in device, "trace" in device, "socket" in device])).toEqual([
      [false, false, false],
      [false, false, false],
      [false, true, false],
      [false, false, true],
      [false, false, false],
    ]);
    expect([...named]).toEqual([
      ["disk0", "/at/source/disk.img"],
      ["disk1", "/at/source/other.img"],
      ["dev0", "/at/source/run.dtrc"],
      ["disk2", "/at/source/third.img"],
    ]);
  });

  it.each(ALL)("is refused where nothing was named for its $id ($model), whatever exists there", (device) => {
    const option = device === SERVED ? `--socket ${device.id}=PATH` : `--file ${device.id}=FILE`;
    expect(() => arrived([device], NOTHING)).toThrow(
      expect.objectContaining({ code: "NOT_GRANTED", remedy: expect.stringContaining(option) }),
    );
    // What exists plays no part: the refusal of a path that is there reads the same.
    const there = { ...device, ...("file" in device ? { file: "/etc/passwd" } : {}) };
    const messages = [device, there].map((one) => {
      try {
        return arrived([one], NOTHING);
      } catch (error) {
        return (error as Error).message;
      }
    });
    expect(messages[0]).toBe(messages[1]);
  });

  it("has what was named for each of its devices", () => {
    const machine = arrived(ALL, {
      files: { disk0: "/here/a.img", disk1: "/here/b.img", dev0: "/here/c.dtrc", disk2: "/here/d.img" },
      sockets: { vf0: "/here/vf0" },
    });
    expect(machine.devices).toMatchObject([
      { file: "/here/a.img" },
      { file: "/here/b.img" },
      { trace: "/here/c.dtrc" },
      { destinationSocket: "/here/vf0" },
      { file: "/here/d.img" },
    ]);
    expect(machine.devices.map((device) => "within" in device && device.within)).not.toContain("/here");
  });

  it("has its source's files only as they lie in the folder that was named, and no socket from there", () => {
    const [disk] = arrived([NVME], { ...NOTHING, folder: "/at" }).devices;
    expect(disk).toMatchObject({ file: "/at/source/disk.img", within: "/at" });
    // What was named by device is the operator's own, wherever it lies.
    const [named] = arrived([NVME], { ...NOTHING, files: { disk0: "/here/a.img" }, folder: "/at" }).devices;
    expect(named).toMatchObject({ file: "/here/a.img", within: undefined });
    expect(() => arrived([SERVED], { ...NOTHING, folder: "/at" })).toThrow(
      expect.objectContaining({ code: "NOT_GRANTED" }),
    );
  });

  it("has disks that are made up, as its source has", () => {
    const { file: _, ...made } = BLK;
    expect(arrived([made], { ...NOTHING, folder: "/" }).devices[0]).not.toHaveProperty("file");
    expect(() => arrived([{ ...made, model: "nvme" }], { ...NOTHING, folder: "/" })).toThrow(
      expect.objectContaining({ code: "NOT_GRANTED" }),
    );
  });

  it("is not granted what an object of JavaScript has by itself", () => {
    const device = { ...NVME, id: "constructor" };
    expect(() => arrived([device], NOTHING)).toThrow(expect.objectContaining({ code: "NOT_GRANTED" }));
  });
});

it("the destination on this machine may open all that its operator's machine names", () => {
  const description = machineOf(...ALL);
  expect(grantsOf(description)).toEqual({
    files: {
      disk0: "/at/source/disk.img",
      disk1: "/at/source/other.img",
      dev0: "/at/source/run.dtrc",
      disk2: "/at/source/third.img",
    },
    sockets: { vf0: "/named/by/source" },
  });
  expect(arrived(ALL, grantsOf(description)).devices).toMatchObject([
    { file: NVME.file },
    { file: BLK.file },
    { trace: REPLAY.trace },
    { destinationSocket: SERVED.destinationSocket },
    { file: STARTED.file },
  ]);
});
