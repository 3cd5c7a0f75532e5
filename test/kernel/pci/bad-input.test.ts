import { chmodSync, existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createPassthroughMachine, type PassthroughMachine } from "../../../src/host/passthrough-machine.js";
import { LinuxHost } from "../../../src/linux/host.js";
import { MiB } from "../../../src/memory/address.js";
import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { dirtmap } from "../../support/program.js";
import { openDescriptors } from "../support/descriptors.js";
import { bindToVfioPci } from "../support/vfio-devices.js";

/* What is said of PCI devices that can't be had, and what is left open then: nothing. */

const { edu, nvme, besideNvme } = PCI_DEVICES;

let before: string[];
beforeEach(() => {
  before = openDescriptors();
});
afterEach(() => {
  expect(openDescriptors()).toEqual(before);
});

/** A machine with one device. */
function machineOf(host: LinuxHost, hostId: string, memory = 4 * MiB): Promise<PassthroughMachine> {
  return createPassthroughMachine({ host, devices: [{ id: "device0", hostId }], memory });
}

test("a device that a driver of the kernel has is refused with that driver's name and the commands that take it away", async () => {
  await using host = new LinuxHost();
  await expect(machineOf(host, nvme)).rejects.toMatchObject({
    code: "ENODEV",
    message: expect.stringContaining("its driver is nvme, no VFIO driver"),
    remedy: expect.stringContaining(`/sys/bus/pci/devices/${nvme}/driver/unbind`),
  });
});

test("a device whose group a driver of the kernel has a member of is refused, and the member named", async () => {
  await using _bound = bindToVfioPci(besideNvme);
  await using host = new LinuxHost();
  await expect(machineOf(host, besideNvme)).rejects.toMatchObject({
    code: "EPERM",
    syscall: "VFIO_DEVICE_BIND_IOMMUFD",
    remedy: expect.stringContaining("bind the whole group to VFIO drivers"),
  });
  const { code, stdout } = await dirtmap(["probe", "--host", "linux", "--device", besideNvme, "--json"]);
  expect(code).toBe(0);
  const [{ missing }] = JSON.parse(stdout).devices;
  expect(missing).toContainEqual(
    expect.objectContaining({
      code: "GROUP_HELD_BACK",
      message: expect.stringContaining(`${nvme} shares IOMMU group`),
      commands: [expect.stringContaining(`echo ${nvme} > `)],
    }),
  );
});

test("memory above the locked-memory limit is refused with the limit, and the device let go", async () => {
  await using bound = bindToVfioPci(edu);
  chmodSync(bound.cdev, 0o666);
  chmodSync("/dev/iommu", 0o666);
  await using host = new LinuxHost();
  // Without CAP_IPC_LOCK, which root has and others have not; any number but 0 will do.
  process.seteuid?.(12345);
  try {
    await expect(machineOf(host, edu, 64 * MiB)).rejects.toMatchObject({
      code: "ENOMEM",
      remedy: expect.stringMatching(/^RLIMIT_MEMLOCK is \d+ bytes: raise it \(ulimit -l/),
    });
  } finally {
    process.seteuid?.(0);
    chmodSync("/dev/iommu", 0o660);
  }
  await (await machineOf(host, edu, 64 * MiB))[Symbol.asyncDispose]();
});

describe("a device that is removed from the bus while a machine has it", () => {
  test("is given back, and then is gone until the bus is scanned again", async () => {
    const { sysfs } = bindToVfioPci(edu);
    await using host = new LinuxHost();
    await using machine = await machineOf(host, edu);
    // Blocks until the machine has let go of it.
    await writeFile(`${sysfs}/remove`, "1");
    try {
      expect(existsSync(sysfs)).toBe(false);
      await expect(machine.devices[0].vfio.attach(machine.devices[0].ioas)).rejects.toMatchObject({ code: "ENODEV" });
      await expect(host.openDevice(edu)).rejects.toMatchObject({
        code: "ENODEV",
        message: expect.stringContaining("there is no such device"),
      });
    } finally {
      await writeFile("/sys/bus/pci/rescan", "1");
    }
    expect(existsSync(sysfs)).toBe(true);
  });
});
