import { rmSync } from "node:fs";
import { release } from "node:os";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../../../linux/fake-system.test.helper.js";
import { DEFAULT_POLICY, type Policy } from "../../../tracking/choice.js";
import { hostPlanText, hostPlanWarnings } from "../../text/linux-plan-text.js";
import { type Behaviour, fakeHost } from "./fake-host.test.helper.js";
import { planHost } from "./plan.js";

const VF = "0000:3b:00.1";
const VF2 = "0000:3b:00.2";
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

  test("what nothing tells is unknown, is not counted on, and is not denied either", async () => {
    system.iommu("smmu3.0x09050000");
    system.pci("0000:05:00.0", { driver: "vendor_vfio_pci", group: 5, iommu: "smmu3.0x09050000", vfio: "vfio9" });
    const { devices } = await plan({ "0000:05:00.0": { refusesBind: "EBUSY" } }, {}, ["0000:05:00.0"]);
    expect(devices[0].capabilities).toMatchObject({
      migration: "unknown",
      flags: { tracksInternally: "unknown" },
      iommu: { dirtyTracking: "unknown" },
      trackers: { iommu: { available: "unknown" }, device: { available: "unknown" } },
    });
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

test("an mdev goes to the device of QEMU that its type names; one that has none there is left out with the reason", async () => {
  const uuid = (digit: number) => `83b8f4f2-509f-382f-3c1e-e6bfe0fa100${digit}`;
  const apis = ["vfio-pci", "vfio-ap", "vfio-ccw", "vfio-platform", null];
  for (const [index, api] of apis.entries()) {
    system.mdev(uuid(index), {
      parent: `p${index}`,
      type: `t${index}`,
      api,
      group: 20 + index,
      vfio: `vfio${20 + index}`,
    });
  }
  const { qemu, libvirt, leftOut } = await plan(
    Object.fromEntries(apis.map((_, index) => [uuid(index), { refusesBind: "EBUSY" }])),
    {},
    apis.map((_, index) => uuid(index)),
  );
  expect(qemu.arguments.map(({ value }) => value)).toEqual([
    expect.stringMatching(/^vfio-pci,.*sysfsdev=.*0,enable-migration=auto/),
    `vfio-ap,id=vfio-${uuid(1)},sysfsdev=/sys/bus/mdev/devices/${uuid(1)}`,
    `vfio-ccw,id=vfio-${uuid(2)},sysfsdev=/sys/bus/mdev/devices/${uuid(2)}`,
  ]);
  expect(libvirt.hostdevs.map(({ attributes }) => attributes.model)).toEqual(["vfio-pci", "vfio-ap", "vfio-ccw"]);
  expect(leftOut).toMatchObject([
    { id: uuid(3), why: "it is an mdev for vfio-platform, for which QEMU has no -device" },
    { id: uuid(4), why: expect.stringContaining("device_api") },
  ]);
});

test("a PCI device in a domain of more than 16 bits goes by its path, which QEMU takes", async () => {
  const id = "10000:e1:00.0";
  system.pci(id, { driver: "vfio-pci", group: 60, iommu: "dmar0", vfio: "vfio60" });
  const { qemu } = await plan({ [id]: {} }, {}, [id]);
  expect(qemu.arguments[1].value).toContain(`sysfsdev=/sys/bus/pci/devices/${id},`);
});

describe("a host without iommufd", () => {
  test("that its kernel could have gets options for it, with how to get it", async () => {
    rmSync(`${system.roots.dev}/iommu`);
    system.file(`${system.roots.boot}/config-${release()}`, "CONFIG_IOMMUFD=m\n");
    const { qemu, remarks } = await plan({}, {}, [VF]);
    expect(qemu.arguments[0].value).toMatch(/^iommufd,/);
    expect(remarks).toEqual([expect.stringMatching(/^the options need iommufd, .*not loaded.*; run modprobe iommufd/)]);
  });

  test("that its kernel lacks gets options for type1, and no IOMMU's dirty bits", async () => {
    rmSync(`${system.roots.dev}/iommu`);
    system.file(`${system.roots.boot}/config-${release()}`, "# CONFIG_IOMMUFD is not set\n");
    const { devices, qemu, libvirt, remarks } = await plan({}, {}, [VF]);
    expect(devices).toMatchObject([{ choice: { tracker: "device" } }]);
    expect(qemu.arguments.map(({ value }) => value)).toEqual([expect.not.stringContaining("iommufd")]);
    expect(libvirt.oldest.libvirt).toBe("8.2.0");
    expect(remarks).toEqual([expect.stringMatching(/^the options are for type1, without iommufd: .*CONFIG_IOMMUFD/)]);
  });

  test("or without nodes for VFIO devices, is one of type1 too", async () => {
    system.pci(VF2, { driver: "vfio-pci", group: 43, iommu: "dmar0", vfio: "vfio7", cdev: false });
    rmSync(`${system.roots.sys}/bus/pci/devices/${VF}`);
    const { qemu } = await plan({}, {}, [VF2]);
    expect(qemu.arguments.map(({ option }) => option)).toEqual(["-device"]);
  });
});

test("a device that the policy names and no guest can get is refused, with what would help", async () => {
  system.pci(VF2, { driver: "vfio-pci", vfio: "vfio5", cdev: false });
  await expect(plan({}, { trackers: { [VF2]: "device" } }, [VF2])).rejects.toMatchObject({
    code: "NOT_ASSIGNABLE",
    message: expect.stringContaining("no IOMMU is in front of"),
    remedy: expect.stringMatching(/^assign another device: .* or leave out what is asked for/),
  });
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

test("without anything on a VFIO driver it says how to name a device", async () => {
  system[Symbol.dispose]();
  system = new FakeSystem();
  expect(hostPlanText(await plan({}), DEFAULT_POLICY)).toMatch(
    /^no device of this machine is on a VFIO driver: name one/,
  );
});
