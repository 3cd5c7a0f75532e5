import { execFileSync } from "node:child_process";
import { rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../fake-system.test.helper.js";
import { ROOTS } from "../roots.js";
import { findDevices } from "./find.js";
import { findMdevTypes } from "./mdev.js";

const VF = "0000:3b:00.1";
const UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

let system = new FakeSystem();
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

const find = () => findDevices(system.roots);
const ids = () => find().map(({ id }) => id);

describe("a PCI device", () => {
  test("on a VFIO driver shows driver, group, IOMMU, NUMA node, cdev and what it is", () => {
    system.iommu("dmar1", { "intel-iommu/ecap": "f0a0e8f0f050df\n" });
    system.pci(VF, {
      driver: "mlx5_vfio_pci",
      group: 42,
      iommu: "dmar1",
      numaNode: "1",
      vfio: "vfio3",
      vendor: "0x15b3",
      device: "0x101e",
      pf: "0000:3b:00.0",
    });
    expect(find()).toEqual([
      {
        id: VF,
        model: "mlx5_vfio_pci",
        kind: "pci",
        iommuGroup: 42,
        path: `${system.roots.sys}/bus/pci/devices/${VF}`,
        driver: "mlx5_vfio_pci",
        group: { id: 42, members: [{ id: VF, driver: "mlx5_vfio_pci", holdsBack: false }], noIommu: false },
        iommu: { name: "dmar1", type: "intel-iommu", dirtyTracking: false },
        numaNode: 1,
        vfio: { name: "vfio3", hasCdev: true, cdev: `${system.roots.dev}/vfio/devices/vfio3` },
        pci: {
          vendor: 0x15b3,
          device: 0x101e,
          class: 0x020000,
          function: "ethernet",
          sriov: { role: "vf", pf: "0000:3b:00.0" },
        },
        mdev: null,
      },
    ]);
  });

  test("on another driver, or on none, is a candidate where an IOMMU is in front of it", () => {
    system.pci("0000:01:00.0", { driver: "nvme", group: 3, class: "0x010802" });
    system.pci("0000:02:00.0", { group: 4 });
    system.pci("0000:03:00.0", { driver: "nvme", class: "0x010802" });
    expect(find().map(({ id, model, driver, vfio, pci }) => [id, model, driver, vfio, pci?.function])).toEqual([
      ["0000:01:00.0", "nvme", "nvme", null, "nvme"],
      ["0000:02:00.0", "no driver", null, null, "ethernet"],
    ]);
  });

  test("that is a bridge is none, except for switches of GPUs, which count as other bridges", () => {
    for (const [slot, bridge] of ["0x060000", "0x060100", "0x060400", "0x068000"].entries()) {
      system.pci(`0000:0${slot}:00.0`, { group: slot, class: bridge });
    }
    expect(ids()).toEqual(["0000:03:00.0"]);
  });

  test("without a NUMA node (-1) shows none", () => {
    system.pci(VF, { group: 1, numaNode: "-1" });
    expect(find()[0].numaNode).toBeNull();
  });

  test("that is a PF says how many VFs are on, behind a domain of five digits too", () => {
    system.pci("10000:01:00.0", { group: 1, vfs: 4 });
    expect(find()[0]).toMatchObject({ id: "10000:01:00.0", pci: { sriov: { role: "pf", vfs: 4 } } });
  });

  test("on a VFIO driver without an IOMMU is listed, with a group that says so", () => {
    system.pci(VF, { driver: "vfio-pci", vfio: "vfio0", cdev: false, group: 0 });
    system.file(`${system.roots.sys}/kernel/iommu_groups/0/name`, "vfio-noiommu\n");
    expect(find()[0]).toMatchObject({ iommu: null, group: { noIommu: true }, vfio: { hasCdev: false, cdev: null } });
  });

  test("is known to be VFIO's by its driver's name, where the kernel shows no vfio-dev", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1 });
    expect(find()[0].vfio).toEqual({ name: null, hasCdev: false, cdev: null });
  });
});

describe("an IOMMU group", () => {
  test("names all its members with their drivers, and who holds it back", () => {
    system.pci("0000:01:00.0", { driver: "vfio-pci", group: 7, vfio: "vfio0" });
    system.pci("0000:01:00.1", { driver: "snd_hda_intel", group: 7, class: "0x040300" });
    system.pci("0000:01:00.2", { group: 7 });
    system.pci("0000:00:1c.0", { driver: "pcieport", group: 7, class: "0x060400" });
    expect(find()[0].group?.members).toEqual([
      { id: "0000:00:1c.0", driver: "pcieport", holdsBack: false },
      { id: "0000:01:00.0", driver: "vfio-pci", holdsBack: false },
      { id: "0000:01:00.1", driver: "snd_hda_intel", holdsBack: true },
      { id: "0000:01:00.2", driver: null, holdsBack: false },
    ]);
  });
});

describe("an IOMMU's kind and dirty tracking", () => {
  // SMTS (bit 43) and SLADS (bit 45); either alone is not enough. HDSup is bit 52 of AMD's EFR.
  test.each([
    ["dmar0", { "intel-iommu/ecap": "280000000000\n" }, "intel-iommu", true],
    ["dmar0", { "intel-iommu/ecap": "200000000000\n" }, "intel-iommu", false],
    ["dmar0", { "intel-iommu/ecap": "what\n" }, "intel-iommu", null],
    ["ivhd2", { "amd-iommu/features": "12000000000000:0\n" }, "amd-iommu", true],
    ["ivhd2", { "amd-iommu/features": "246577efa2254afa\n" }, "amd-iommu", false],
    ["smmu3.0x0000000009050000", {}, "arm-smmu-v3", null],
    ["something", {}, "something", null],
  ] as const)("%s with %j", (name, files, type, dirtyTracking) => {
    system.iommu(name, files);
    system.pci(VF, { group: 1, iommu: name });
    expect(find()[0].iommu).toEqual({ name, type, dirtyTracking });
  });
});

describe("an mdev", () => {
  test("names its parent and type, and has no IOMMU although it is in a group", () => {
    system.mdev(UUID, { parent: "mtty", type: "mtty-1", driver: "mtty", group: 9, vfio: "vfio1" });
    expect(find()).toMatchObject([
      { id: UUID, kind: "mdev", driver: "mtty", iommu: null, iommuGroup: 9, mdev: { parent: "mtty", type: "mtty-1" } },
    ]);
  });

  test("that could be made is a type of its parent, with how many more there can be", () => {
    const types = `${system.roots.sys}/class/mdev_bus/mtty/mdev_supported_types`;
    system.file(`${types}/mtty-1/name`, "Single port serial\n");
    system.file(`${types}/mtty-1/available_instances`, "24\n");
    system.file(`${types}/mtty-2/available_instances`, "-3\n");
    expect(findMdevTypes(system.roots)).toEqual([
      { parent: "mtty", type: "mtty-1", name: "Single port serial", available: 24, create: `${types}/mtty-1/create` },
      { parent: "mtty", type: "mtty-2", name: "mtty-2", available: null, create: `${types}/mtty-2/create` },
    ]);
  });
});

test("a platform device is a candidate where an IOMMU is in front of it", () => {
  system.platform("9060000.ethernet", { driver: "xgbe", group: 5, iommu: "smmu3.0x09050000" });
  system.platform("serial8250", { driver: "serial8250" });
  expect(find()).toMatchObject([{ id: "9060000.ethernet", kind: "platform", iommu: { type: "arm-smmu-v3" } }]);
});

describe("what comes from sysfs is checked", () => {
  test("a device that is gone, or half gone, is left out", () => {
    system.pci(VF, { group: 1 });
    const gone = system.pci("0000:3b:00.2", { group: 1 });
    rmSync(gone, { recursive: true });
    const half = system.pci("0000:3b:00.3", { group: 1 });
    rmSync(`${half}/class`);
    expect(ids()).toEqual([VF]);
  });

  test("text that is none, and numbers out of range, count as not there", () => {
    const path = system.pci(VF, { group: 1, numaNode: "99999999", vfs: 1 });
    writeFileSync(`${path}/sriov_numvfs`, "\u001b[31mred\n");
    symlinkSync("../../no\u0007name", `${path}/driver`);
    expect(find()[0]).toMatchObject({ numaNode: null, driver: null, pci: { sriov: null } });
    writeFileSync(`${path}/vendor`, "garbage\n");
    expect(ids()).toEqual([]);
  });

  test("names that are no addresses, and a group that is no number, are passed over", () => {
    system.file(`${system.roots.sys}/bus/pci/devices/power`, "on");
    const path = system.pci(VF, { driver: "vfio-pci" });
    symlinkSync("../../seven", `${path}/iommu_group`);
    expect(find()[0]).toMatchObject({ id: VF, iommuGroup: null });
  });

  test("a file that has no end is not read to it, and a pipe is not waited for", () => {
    const path = system.pci(VF, { group: 1 });
    truncateSync(`${path}/numa_node`, 2 ** 40);
    rmSync(`${path}/class`);
    execFileSync("mkfifo", [`${path}/class`]);
    expect(ids()).toEqual([]);
    expect(find()).toEqual([]);
  });

  test("a machine without any of it has no devices", () => {
    expect(find()).toEqual([]);
    expect(findMdevTypes(system.roots)).toEqual([]);
  });
});

test("this machine's own sysfs is read without an error", () => {
  for (const { id, path } of findDevices(ROOTS)) expect(path).toContain(id);
});
