import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/*
 * VFIO devices of the kernel under test: PCI devices taken over by vfio-pci, and mdevs of the mtty sample driver. Both
 * through sysfs, as an operator does it.
 */

/** A device with a character device, until it is let go. */
export interface TestDevice extends AsyncDisposable {
  /** Its name in sysfs: the PCI address, or the mdev's UUID. */
  readonly name: string;
  /** `/dev/vfio/devices/vfioN` */
  readonly cdev: string;
  /** Its folder in sysfs. */
  readonly sysfs: string;
}

/** The character device that VFIO made for a device. @throws Error where it made none */
export function cdevOf(sysfs: string): string {
  const folder = join(sysfs, "vfio-dev");
  const [name] = existsSync(folder) ? readdirSync(folder) : [];
  if (name === undefined) throw new Error(`no VFIO device at ${sysfs}`);
  return join("/dev/vfio/devices", name);
}

/** Hands a PCI device to vfio-pci; letting go gives it back to its own driver, if there is one. */
export function bindToVfioPci(address: string): TestDevice {
  const sysfs = join("/sys/bus/pci/devices", address);
  const probe = (driver: string) => {
    writeFileSync(join(sysfs, "driver_override"), driver);
    if (existsSync(join(sysfs, "driver"))) writeFileSync(join(sysfs, "driver/unbind"), address);
    writeFileSync("/sys/bus/pci/drivers_probe", address);
  };
  probe("vfio-pci");
  return {
    name: address,
    sysfs,
    cdev: cdevOf(sysfs),
    [Symbol.asyncDispose]: async () => probe("\n"),
  };
}

/** Makes an mdev of the mtty sample driver: a serial port with a migration state machine. */
export function createMtty(uuid: string = randomUUID()): TestDevice {
  writeFileSync("/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create", uuid);
  const sysfs = join("/sys/bus/mdev/devices", uuid);
  return {
    name: uuid,
    sysfs,
    cdev: cdevOf(sysfs),
    [Symbol.asyncDispose]: async () => writeFileSync(join(sysfs, "remove"), "1"),
  };
}
