import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../../linux/fake-system.test.helper.js";
import { DEFAULT_POLICY, type Policy } from "../../tracking/choice.js";
import { type Behaviour, fakeHost } from "./fake-host.test.helper.js";
import { hostPlanText, hostPlanWarnings, planHost } from "./plan-host.js";
import { byDeviceId, deviceId } from "./select.js";

const VF = "0000:3b:00.1";
const NVME = "0000:01:00.0";
const MDEV = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

let system = new FakeSystem();
beforeEach(() => {
  system.file(`${system.roots.dev}/iommu`, "");
  // SMTS and SLADS: an IOMMU with dirty tracking.
  system.iommu("dmar0", { "intel-iommu/ecap": "280000000000\n" });
  system.pci(VF, { driver: "mlx5_vfio_pci", group: 42, iommu: "dmar0", vfio: "vfio3" });
  system.pci(NVME, { driver: "nvme", group: 3, iommu: "dmar0", class: "0x010802" });
});
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

function plan(devices: Record<string, Behaviour>, policy: Partial<Policy> = {}, ids?: string[]) {
  return planHost(fakeHost(system, devices).host, { ...DEFAULT_POLICY, ...policy }, { ids });
}

test("by default what a VFIO driver has is planned, by what it said itself, with QEMU's options and libvirt's XML", async () => {
  system.mdev(MDEV, { parent: "mtty", type: "mtty-1", driver: "mtty", group: 9, vfio: "vfio4" });
  const planned = await plan({ [VF]: { log: {} }, [MDEV]: { mdev: true, log: {} } }, { trackers: { [VF]: "device" } });
  expect(planned.devices).toMatchObject([
    { choice: { device: VF, tracker: "device" }, basis: "probed", why: null, iommuGroup: 42 },
    { choice: { device: MDEV, tracker: "pinned" }, basis: "probed" },
  ]);
  const text = hostPlanText(planned, DEFAULT_POLICY);
  expect(text).toMatch(new RegExp(`^${VF}: the operator asked for 'device'`, "m"));
  expect(text).toMatch(/^-object iommufd,id=/m);
  expect(text).toMatch(new RegExp(`^-device vfio-pci,.*host=${VF}.*iommufd=`, "m"));
  expect(text).toMatch(new RegExp(`^-device vfio-pci,.*sysfsdev=/sys/bus/mdev/devices/${MDEV}`, "m"));
  expect(text).toContain("<hostdev");
  expect(text).not.toContain("a guess");
});

describe("a device that can't be asked is planned by what sysfs tells, and marked", () => {
  test("on another driver: by the IOMMU's registers, and the VFIO driver that it would get", async () => {
    const planned = await plan({}, {}, [NVME]);
    expect(planned.devices).toMatchObject([
      {
        basis: "guessed",
        why: "its driver is nvme, no VFIO driver",
        choice: { device: NVME, tracker: "iommu", reason: expect.stringContaining("by the registers of dmar0") },
        capabilities: { migration: null, trackers: { device: { why: "vfio-pci has no DMA logging" } } },
      },
    ]);
    const guess = "a guess from sysfs, since it could not be asked: its driver is nvme, no VFIO driver";
    expect(hostPlanText(planned, DEFAULT_POLICY)).toContain(`  ${guess}`);
    expect(hostPlanWarnings(planned)).toEqual([`${NVME}: ${guess}`]);
  });

  test("in use: by its driver", async () => {
    const { devices } = await plan({ [VF]: { refusesBind: "EBUSY" } }, { order: "device-first" });
    expect(devices).toMatchObject([
      {
        basis: "guessed",
        choice: { tracker: "device" },
        capabilities: { migration: { stopCopy: true, p2p: true, preCopy: true } },
      },
    ]);
  });

  test("what nothing tells counts as lacking", async () => {
    system.iommu("smmu3.0x09050000");
    system.pci("0000:05:00.0", { driver: "vendor_vfio_pci", group: 5, iommu: "smmu3.0x09050000", vfio: "vfio9" });
    const { devices } = await plan({ "0000:05:00.0": { refusesBind: "EBUSY" } }, {}, ["0000:05:00.0"]);
    expect(devices[0].choice).toMatchObject({
      tracker: "everything",
      reason: expect.stringMatching(/sysfs does not tell.*nothing is known of its driver vendor_vfio_pci/),
    });
  });
});

test("a device that the policy names is planned without being named twice", async () => {
  const { devices } = await plan({ [VF]: {} }, { untrackedDevices: { [NVME]: "everything" } });
  expect(devices.map(({ choice }) => choice.device)).toEqual([NVME, VF]);
});

test("a device without an IOMMU is left out with the reason, and so is one that QEMU has no option for", async () => {
  system.pci("0000:06:00.0", { driver: "vfio-pci", vfio: "vfio5", cdev: false });
  system.platform("9060000.ethernet", { driver: "vfio-platform", group: 8, iommu: "smmu3.0x0", vfio: "vfio6" });
  const planned = await plan({ [VF]: {}, "9060000.ethernet": {} });
  expect(planned.leftOut).toMatchObject([
    { id: "0000:06:00.0", why: expect.stringContaining("no IOMMU is in front of") },
    { id: "9060000.ethernet", why: expect.stringContaining("platform device") },
  ]);
  expect(planned.devices.map(({ choice }) => choice.device)).toEqual([VF, "9060000.ethernet"]);
  const text = hostPlanText(planned, DEFAULT_POLICY);
  expect(text).toContain("0000:06:00.0: no IOMMU is in front of");
  expect(text).not.toMatch(/-device .*9060000/);
});

test("a device that this machine doesn't have is a usage error that names those it has", async () => {
  await expect(plan({}, {}, ["0000:3b:00.2"])).rejects.toMatchObject({
    code: "UNKNOWN_DEVICE",
    remedy: expect.stringContaining(`did you mean '${VF}'?`),
  });
});

test("without anything on a VFIO driver it says how to name a device", async () => {
  system[Symbol.dispose]();
  system = new FakeSystem();
  expect(hostPlanText(await plan({}), DEFAULT_POLICY)).toMatch(
    /^no device of this machine is on a VFIO driver: name one/,
  );
});

test("a PCI address may be written as lspci does, in options too", () => {
  expect(deviceId("3B:00.1")).toBe(VF);
  expect(deviceId(MDEV)).toBe(MDEV);
  expect(byDeviceId({ "3b:00.1": "iommu", [NVME]: "device" })).toEqual({ [VF]: "iommu", [NVME]: "device" });
});
