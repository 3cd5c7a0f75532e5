import { existsSync, statSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { machineSchema } from "../../../host/description.js";
import { MiB } from "../../../memory/address.js";
import { openMachine } from "../hosts.js";
import { withDisks } from "./disks.js";

const LOAD = { rate: 1, footprint: MiB };

function machineOf(...devices: object[]) {
  return machineSchema.parse({
    memory: 16 * MiB,
    vcpus: { count: 1, rate: 1, footprint: 65536 },
    iommus: [{ id: "iommu0", format: "amd-v1" }],
    devices,
  });
}

const NVME = { id: "disk0", model: "nvme", iommu: "iommu0", load: LOAD };

describe("a machine's disks", () => {
  it("get files where they have none, which are gone in the end", () => {
    const description = machineOf(NVME, { ...NVME, id: "disk1", file: "/somewhere/disk.img" });
    let made = "";
    {
      using disks = withDisks(description);
      const [first, second] = disks.description.devices;
      expect(second).toEqual(description.devices[1]);
      made = "file" in first ? (first.file ?? "") : "";
      expect(statSync(made).size).toBe(64 * MiB);
      expect({ ...first, file: undefined }).toEqual({ ...description.devices[0], file: undefined });
    }
    expect(made).not.toBe("");
    expect(existsSync(made)).toBe(false);
  });

  it("are left alone where a server has them, or where they are no NVMe disks", () => {
    const { iommu: _, ...rest } = NVME;
    const description = machineOf({ ...rest, socket: "/somewhere/nvme" }, { ...NVME, id: "blk0", model: "blk" });
    using disks = withDisks(description);
    expect(disks.description).toBe(description);
  });

  it("are refused at a destination that is not told which files they have", async () => {
    await expect(openMachine(machineOf(NVME), { paused: true, side: "destination" })).rejects.toMatchObject({
      code: "BAD_DISK_FILE",
    });
  });

  it("are refused where the file is not there, or another's", async () => {
    const missing = machineOf({ ...NVME, file: "/nonexistent/disk.img" });
    await expect(openMachine(missing)).rejects.toMatchObject({ code: "BAD_DISK_FILE" });
    using disks = withDisks(machineOf(NVME));
    await using _first = await openMachine(disks.description);
    await expect(openMachine(disks.description)).rejects.toMatchObject({ code: "DISK_LOCKED" });
  });
});
