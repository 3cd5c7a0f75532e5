import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { probeHost } from "../../../src/cli/sites/linux/probe.js";
import { hostText } from "../../../src/cli/text/linux-probe-text.js";
import { LinuxHost } from "../../../src/linux/host.js";
import { dirtmap } from "../../support/program.js";
import { createMtty } from "../support/vfio-devices.js";

test("a machine without devices says so, and that it could make mdevs", async () => {
  await using host = new LinuxHost();
  const text = hostText(await probeHost(host));
  expect(text).toMatch(/^Linux 7\.2\.\S+, \/dev\/iommu can be opened/);
  expect(text.split("\n")).toContain("no device of this machine is assigned, or could be");
  expect(text).toMatch(/^mtty-1 +mtty +24 +Single port serial$/m);
});

test("an mdev is probed as it is, and left as it was found", async () => {
  await using mtty = createMtty();
  await using host = new LinuxHost();
  const { devices } = await probeHost(host);
  expect(devices).toMatchObject([
    {
      device: {
        id: mtty.name,
        kind: "mdev",
        driver: "mtty",
        iommu: null,
        vfio: { hasCdev: true, cdev: mtty.cdev },
        mdev: { parent: "mtty", type: "mtty-1" },
      },
      missing: [],
      capabilities: {
        mdev: true,
        iommu: null,
        flags: { tracksInternally: true, tracksThroughContainer: false },
        migration: { stopCopy: true, p2p: true, preCopy: true },
        trackers: { iommu: { available: false }, device: { available: false }, pinned: { available: true } },
      },
    },
  ]);
  // Unbound and closed: it can be had at once, and says the same.
  expect((await probeHost(host)).devices).toEqual(devices);
});

test("an mdev's plan tracks by its pins, and has QEMU's options and libvirt's XML for it", async () => {
  await using mtty = createMtty();
  const { code, stdout, stderr } = await dirtmap(["plan", "--host", "linux"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toMatch(new RegExp(`^${mtty.name} +pinned +4K`, "m"));
  expect(stdout).toMatch(new RegExp(`^-device vfio-pci,.*sysfsdev=/sys/bus/mdev/devices/${mtty.name}`, "m"));
  expect(stdout).toContain(`<address uuid='${mtty.name}'/>`);
  expect(stdout).not.toContain("a guess");
});

test("a device in use still shows what sysfs tells, and by whom it is used", async () => {
  await using mtty = createMtty();
  await using host = new LinuxHost();
  const device = await host.openDevice(mtty.name);
  await device.bind(await host.openIommufd());
  await expect(host.openDevice(mtty.name)).rejects.toMatchObject({ code: "EBUSY" });

  const { code, stdout } = await dirtmap(["probe", "--host", "linux"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(new RegExp(`^${mtty.name} +mtty-1 of mtty +mtty .*${mtty.cdev}$`, "m"));
  expect(stdout).toMatch(new RegExp(`missing: it is in use, by .*\\(process ${process.pid}\\)`));
});

test("without the rights of root it says for whom /dev/iommu and the device are", async () => {
  await using mtty = createMtty();
  const { code, stdout } = await dirtmap(["probe", "--host", "linux", "--json"], { uid: 65534, gid: 65534 });
  expect(code).toBe(0);
  const { iommufd, missing, devices } = JSON.parse(stdout);
  expect(iommufd).toBe(false);
  expect(missing).toMatchObject([
    {
      code: "IOMMUFD_NOT_PERMITTED",
      message: expect.stringMatching(
        /^\/dev\/iommu has mode 06\d0 of user 0, group 0, and this is user 65534, group 65534$/,
      ),
    },
    { code: "MEMLOCK_TOO_LOW" },
  ]);
  expect(devices).toMatchObject([{ id: mtty.name, capabilities: null, missing: [{ code: "CDEV_NOT_PERMITTED" }] }]);
});

test("an mdev that is removed is no device any more", async () => {
  const mtty = createMtty();
  await mtty[Symbol.asyncDispose]();
  await using host = new LinuxHost();
  expect(await host.devices()).toEqual([]);
  expect(existsSync(mtty.cdev)).toBe(false);
  await expect(host.openDevice(mtty.name)).rejects.toMatchObject({ code: "ENODEV" });
});
