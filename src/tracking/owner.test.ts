import fc from "fast-check";
import { expect, test } from "vitest";
import {
  CONTAINER_OWNER,
  CPU_OWNER,
  covers,
  deviceOwner,
  devicesOf,
  isDeviceId,
  type Owner,
  ownerLabel,
  ownerName,
  parseOwner,
  trackerOf,
} from "./owner.js";

const SHARED: Owner = { kind: "domain", devices: ["nic0", "disk0"] };

test("names are as reports, traces and feeds have them", () => {
  expect([CPU_OWNER, CONTAINER_OWNER, deviceOwner("0000:41:00.0"), SHARED].map(ownerName)).toEqual([
    "cpu",
    "container",
    "0000:41:00.0",
    "domain:nic0+disk0",
  ]);
});

test("every owner of devices with proper ids is read from its name as it was", () => {
  const id = fc.string({ minLength: 1 }).filter(isDeviceId);
  const owner: fc.Arbitrary<Owner> = fc.oneof(
    fc.constantFrom(CPU_OWNER, CONTAINER_OWNER),
    id.map(deviceOwner),
    fc.array(id, { minLength: 1, maxLength: 4 }).map((devices) => ({ kind: "domain" as const, devices })),
  );
  fc.assert(
    fc.property(owner, (each) => {
      expect(parseOwner(ownerName(each))).toEqual(each);
    }),
  );
});

test("every text is an owner's name, and is printed as it was read", () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.string().map((rest) => `domain:${rest}`),
      ),
      (text) => {
        expect(ownerName(parseOwner(text))).toBe(text);
      },
    ),
  );
});

test("no device may be called as another owner is, or so that a domain's name would read as other devices", () => {
  expect(["cpu", "container", "domain:nic0", "nic0+disk0"].map(isDeviceId)).toEqual([false, false, false, false]);
  expect(["nic0", "0000:41:00.0", "vcpus"].map(isDeviceId)).toEqual([true, true, true]);
});

test("people read a domain's devices; one that is alone beside its own log is told apart from it", () => {
  const alone: Owner = { kind: "domain", devices: ["vf0"] };
  expect([SHARED, alone, deviceOwner("vf0"), CPU_OWNER].map(ownerLabel)).toEqual([
    "nic0+disk0",
    "domain:vf0",
    "vf0",
    "cpu",
  ]);
});

test("what a device wrote shows with itself, with its domain, and with a container", () => {
  const owners = [deviceOwner("nic0"), SHARED, CONTAINER_OWNER, CPU_OWNER, deviceOwner("nic")];
  expect(owners.map((owner) => covers(owner, "nic0"))).toEqual([true, true, true, false, false]);
  expect(owners.map(devicesOf)).toEqual([["nic0"], ["nic0", "disk0"], [], [], ["nic"]]);
});

test("a domain's tracker is the IOMMU's, whatever its devices have themselves", () => {
  const owners = [deviceOwner("nic0"), SHARED, CONTAINER_OWNER, CPU_OWNER];
  expect(owners.map((owner) => trackerOf(owner, (id) => `of ${id}`))).toEqual(["of nic0", "iommu", "container", "cpu"]);
});
