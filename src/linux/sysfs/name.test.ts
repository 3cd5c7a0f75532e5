import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../fake-system.test.helper.js";
import { findDevices, isPresent } from "./find.js";
import { devicesCalled } from "./name.js";

const PF = "0000:3b:00.0";
const VF = "0000:3b:00.1";
const VMD = "10000:e1:00.0";
const MDEV = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

let system = new FakeSystem();
beforeEach(() => {
  const { sys } = system.roots;
  system.pci(PF, { driver: "mlx5_core", group: 41, vfs: 1 });
  system.pci(VF, { driver: "mlx5_vfio_pci", group: 42, vfio: "vfio3", pf: PF });
  system.pci(VMD, { driver: "nvme", group: 3, class: "0x010802" });
  system.mdev(MDEV, { parent: "mtty", type: "mtty-1", driver: "mtty", group: 9, vfio: "vfio4" });
  system.platform("fee00000.Ethernet", { driver: "xgbe", group: 5 });
  const nic = `${sys}/devices/pci0000:00/${PF}/net/eth0`;
  system.file(`${nic}/ifindex`, "2\n");
  system.link(`${sys}/class/net/eth0`, nic);
  const disk = `${sys}/devices/pci0000:00/${VMD}/nvme/nvme0/nvme0n1`;
  system.file(`${disk}/nvme0n1p1/dev`, "259:1\n");
  system.link(`${sys}/class/block/nvme0n1`, disk);
  system.link(`${sys}/class/block/nvme0n1p1`, `${disk}/nvme0n1p1`);
  system.file(`${system.roots.dev}/nvme0n1`, "");
  system.link(`${system.roots.dev}/disk/by-id/nvme-SSD_1`, `${system.roots.dev}/nvme0n1`);
});
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

function called(name: string): string[] {
  return devicesCalled(system.roots, name, findDevices(system.roots)).map(({ id }) => id);
}

describe("a device is found by any name that its users have:", () => {
  test.each([
    [VF, VF],
    ["3b:00.1", VF],
    ["3B:00.1", VF],
    ["0:3b:0.1", VF],
    ["0000:3B:00.1", VF],
    ["pci_0000_3b_00_1", VF],
    ["10000:E1:00.0", VMD],
    ["e1:00.0", VMD],
    ["pci_10000_e1_00_0", VMD],
    [MDEV.toUpperCase(), MDEV],
    [`mdev_${MDEV.replaceAll("-", "_")}`, MDEV],
    [`mdev_${MDEV.replaceAll("-", "_")}_0000_06_00_0`, MDEV],
    ["FEE00000.ethernet", "fee00000.Ethernet"],
    ["eth0", PF],
    ["nvme0n1", VMD],
    ["nvme0n1p1", VMD],
  ])("%s", (name, id) => {
    expect(called(name)).toEqual([id]);
  });

  test("a path in sysfs, of it or of what lies below it; a node in /dev, or a link to one", () => {
    const { sys, dev } = system.roots;
    expect(called(`${sys}/bus/pci/devices/${VF}`)).toEqual([VF]);
    expect(called(`${sys}/bus/pci/devices/${VF}/`)).toEqual([VF]);
    expect(called(`${sys}/class/net/eth0`)).toEqual([PF]);
    expect(called(`${dev}/vfio/devices/vfio3`)).toEqual([VF]);
    expect(called(`${dev}/nvme0n1`)).toEqual([VMD]);
    expect(called(`${dev}/disk/by-id/nvme-SSD_1`)).toEqual([VMD]);
  });
});

test("a name that several devices have stands for all of them", () => {
  expect(called("3b:00")).toEqual([PF, VF]);
  system.pci("10001:e1:00.0", { driver: "nvme", group: 4 });
  expect(called("e1:00.0")).toEqual([VMD, "10001:e1:00.0"]);
  expect(called("00:02.0")).toEqual([]);
});

test("an address without a domain is one in domain 0 where there is one", () => {
  system.pci("10000:3b:00.1", { driver: "nvme", group: 4 });
  expect(called("3b:00.1")).toEqual([VF]);
});

test("a name that stands for nothing finds nothing, whatever it is", () => {
  for (const name of [
    "",
    "/",
    ".",
    "..",
    "../eth0",
    "eth1",
    "3b:00.8",
    "3b:20.0",
    "/etc/passwd",
    "\0",
    `${VF}\n`,
    "a/b",
  ]) {
    expect(called(name), JSON.stringify(name)).toEqual([]);
  }
});

test("a bridge, and a device without an IOMMU, are there and are no candidates", () => {
  system.pci("0000:00:1c.0", { driver: "pcieport", group: 1, class: "0x060400" });
  expect(called("00:1c.0")).toEqual([]);
  expect(isPresent(system.roots, "00:1C.0")).toBe(true);
  expect(isPresent(system.roots, "00:1c.1")).toBe(false);
  expect(isPresent(system.roots, "..")).toBe(false);
});
