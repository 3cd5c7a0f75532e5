import { readdirSync, readlinkSync, statSync } from "node:fs";
import { release } from "node:os";
import { basename } from "node:path";
import { expect, test } from "vitest";
import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { IOMMU } from "../support/machine.js";

/** The IOMMU group of a PCI device. */
function groupOf(address: string): string {
  return basename(readlinkSync(`/sys/bus/pci/devices/${address}/iommu_group`));
}

test("the kernel is Linux 7.2, with an iommufd", () => {
  expect(release()).toMatch(/^7\.2\./);
  expect(statSync("/dev/iommu").isCharacterDevice()).toBe(true);
});

test(`its IOMMU is of the kind ${IOMMU.sysfs}`, () => {
  expect(readdirSync("/sys/class/iommu")).toContain(IOMMU.unit);
});

test("edu has an IOMMU group to itself", () => {
  const group = groupOf(PCI_DEVICES.edu);
  expect(readdirSync(`/sys/kernel/iommu_groups/${group}/devices`)).toEqual([PCI_DEVICES.edu]);
});

test("two functions of one slot share a group", () => {
  const group = groupOf(PCI_DEVICES.pair0);
  expect(readdirSync(`/sys/kernel/iommu_groups/${group}/devices`).sort()).toEqual([
    PCI_DEVICES.pair0,
    PCI_DEVICES.pair1,
  ]);
});

test("igb and nvme are behind the IOMMU, too", () => {
  expect(groupOf(PCI_DEVICES.igb)).toMatch(/^\d+$/);
  expect(groupOf(PCI_DEVICES.nvme)).toMatch(/^\d+$/);
});
