import { rmSync } from "node:fs";
import { afterEach, beforeEach, expect, test } from "vitest";
import { FakeSystem } from "./fake-system.test.helper.js";
import { LinuxHost, type Openers } from "./host.js";

const VF = "0000:3b:00.1";
const NIC = "0000:01:00.0";

let system = new FakeSystem();
beforeEach(() => {
  system.file(`${system.roots.dev}/iommu`, "");
  system.iommu("dmar0");
  system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
  system.pci(NIC, { driver: "igb", group: 2 });
});
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

/** A host whose files are entries in a log. */
function logged(): { host: LinuxHost; log: string[]; closing: { fails: boolean } } {
  const log: string[] = [];
  const closing = { fails: false };
  const handle = (name: string, onClose = () => {}) => ({
    [Symbol.asyncDispose]: async () => {
      log.push(`close ${name}`);
      onClose();
      if (closing.fails) throw new Error(`${name} does not close`);
    },
  });
  const openers = {
    iommufd: async (path: string) => handle(path),
    device: async ({ cdev, onClose }: { cdev: string; onClose: () => void }) => handle(cdev, onClose),
  };
  // Only that they can be closed matters here.
  return { host: new LinuxHost({ roots: system.roots, openers: openers as unknown as Openers }), log, closing };
}

test("what was opened and not closed is closed with the host, the last first, whatever of it fails", async () => {
  const { host, log, closing } = logged();
  await host.openIommufd();
  await host.openDevice(VF);
  closing.fails = true;
  await expect(host[Symbol.asyncDispose]()).rejects.toThrow("vfio0 does not close");
  expect(log).toEqual([`close ${system.roots.dev}/vfio/devices/vfio0`, `close ${system.roots.dev}/iommu`]);
});

test("a device that is open is refused until it is closed", async () => {
  await using host = logged().host;
  const device = await host.openDevice(VF);
  await expect(host.openDevice(VF)).rejects.toMatchObject({ code: "EBUSY", remedy: "close it first" });
  await device[Symbol.asyncDispose]();
  await expect(host.openDevice(VF)).resolves.toBeDefined();
});

test("a device that could not be opened may be tried again", async () => {
  let fails = true;
  const { host } = logged();
  const flaky = new LinuxHost({
    roots: system.roots,
    openers: {
      iommufd: () => host.openIommufd(),
      device: async () => {
        if (fails) throw new Error("not now");
        return host.openDevice(VF);
      },
    },
  });
  await expect(flaky.openDevice(VF)).rejects.toThrow("not now");
  fails = false;
  await expect(flaky.openDevice(VF)).resolves.toBeDefined();
});

test("a device that is unknown, or on no VFIO driver, is refused with what to do", async () => {
  await using host = logged().host;
  await expect(host.openDevice("0000:99:00.0")).rejects.toMatchObject({
    code: "ENODEV",
    syscall: "open",
    remedy: "look at `dirtmap probe --host linux`",
  });
  await expect(host.openDevice(NIC)).rejects.toMatchObject({
    code: "ENODEV",
    message: expect.stringContaining("its driver is igb, no VFIO driver"),
    remedy: expect.stringMatching(/^bind it to vfio-pci.*drivers_probe$/),
  });
});

test("an iommufd that can't be had is refused with why, and how to get it", async () => {
  await using host = logged().host;
  rmSync(`${system.roots.dev}/iommu`);
  system.file(`${system.roots.sys}/class/misc/iommu/dev`, "10:126\n");
  await expect(host.openIommufd()).rejects.toMatchObject({
    code: "ENOENT",
    message: expect.stringContaining("this file system has no node for it"),
    remedy: expect.stringContaining("hand the node to the container"),
  });
});
