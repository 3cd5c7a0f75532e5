import { expect, test } from "vitest";
import { UsageError } from "../errors.js";
import { vmmDevices } from "./fake-devices.test.helper.js";
import { mdevUuid, pciAddress, vmmAddress, vmmNames } from "./vmm-device.js";

test("an address is what sysfs calls a PCI function or an mdev, and nothing else", () => {
  expect(vmmAddress("0000:3B:00.2")).toEqual({ bus: "pci", address: "0000:3b:00.2" });
  expect(vmmAddress("10000:e1:1f.7")).toEqual({ bus: "pci", address: "10000:e1:1f.7" });
  const uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  expect(vmmAddress(uuid)).toEqual({ bus: "mdev", uuid, model: "vfio-pci" });
  expect(vmmAddress(uuid, "vfio-ap")).toEqual({ bus: "mdev", uuid, model: "vfio-ap" });
  for (const bad of ["", "3b:00.2", "0000:3b:00.8", "0000:3b:20.0", "0000:3b:00.2,rombar=0", `${uuid}\n`, "../etc"]) {
    expect(() => vmmAddress(bad), JSON.stringify(bad)).toThrow(UsageError);
    expect(() => pciAddress(bad), JSON.stringify(bad)).toThrow(UsageError);
    expect(() => mdevUuid(bad), JSON.stringify(bad)).toThrow(UsageError);
  }
});

test("names have letters, digits and dashes only, and no two devices have the same", () => {
  const devices = vmmDevices({ "0000:3b:00.2": {}, "0000-3b-00-2": {}, "0000:3b:00:2": {}, "…": {}, "vf.0\n": {} });
  expect(vmmNames(devices)).toEqual(["0000-3b-00-2", "0000-3b-00-2-2", "0000-3b-00-2-3", "device", "vf-0"]);
});
