import type { Host, Iommufd, VfioDevice } from "../host/host.js";
import { type ErrnoName, UapiError } from "../uapi/errno.js";
import { deviceObstacles, explainRefusal, vfioDriverFor } from "./obstacles/device.js";
import { type HostState, type IommufdForVmm, iommufdForVmm, readHostState } from "./obstacles/host.js";
import type { Obstacle } from "./obstacles/obstacle.js";
import { ROOTS, type Roots } from "./roots.js";
import type { LinuxDevice } from "./sysfs/device.js";
import { findDevices, isPresent } from "./sysfs/find.js";
import { findMdevTypes, type MdevType } from "./sysfs/mdev.js";
import { devicesCalled } from "./sysfs/name.js";

/** How the kernel's files are opened; another way than the system calls is for tests. */
export interface Openers {
  iommufd(path: string): Promise<Iommufd>;
  device(args: { id: string; model: string; cdev: string; onClose: () => void }): Promise<VfioDevice>;
}

/** By system calls, which are loaded when they are needed: what sysfs tells is told without them. */
const SYSTEM_CALLS: Openers = {
  async iommufd(path) {
    const { LinuxIommufd } = await import("./linux-iommufd.js");
    return LinuxIommufd.open(path);
  },
  async device(args) {
    const { LinuxVfioDevice } = await import("./vfio/device.js");
    return LinuxVfioDevice.open(args);
  },
};

/**
 * This machine's kernel as a host: devices are found in sysfs, and opened through /dev/iommu and /dev/vfio/devices.
 *
 * Invariant: disposing the host closes all that it opened and that is still open, the last first.
 */
export class LinuxHost implements Host {
  readonly name = "linux";
  readonly #roots: Roots;
  readonly #openers: Openers;
  readonly #opened: AsyncDisposable[] = [];
  /** Ids of the devices that are open here. */
  readonly #devices = new Set<string>();

  constructor({ roots = ROOTS, openers = SYSTEM_CALLS }: { roots?: Roots; openers?: Openers } = {}) {
    this.#roots = roots;
    this.#openers = openers;
  }

  /** Lists every device that is assigned or could be, and opens none. */
  async devices(): Promise<LinuxDevice[]> {
    return findDevices(this.#roots);
  }

  /**
   * Returns the devices that a name may mean: none for an unknown name, several for an ambiguous one.
   * @param name an id, a PCI address as lspci writes it, libvirt's name, a path in sysfs, an interface's or a disk's name
   * @param devices of this host
   */
  devicesCalled(name: string, devices: readonly LinuxDevice[]): LinuxDevice[] {
    return devicesCalled(this.#roots, name, devices);
  }

  /** True for a device that is present, even if it could not be assigned. @param name its id or address */
  isPresent(name: string): boolean {
    return isPresent(this.#roots, name);
  }

  /** Finds out whether a VMM of this machine can get devices through iommufd. @param devices devices of this host */
  iommufdForVmm(devices: readonly LinuxDevice[]): IommufdForVmm {
    return iommufdForVmm(this.#roots, devices);
  }

  /** Returns the types of mdevs that could be made. */
  mdevTypes(): MdevType[] {
    return findMdevTypes(this.#roots);
  }

  /** Returns the abilities and gaps of the host as a whole. */
  state(): HostState {
    return readHostState(this.#roots);
  }

  /** Returns the obstacles to opening a device, as far as they show without trying. */
  obstacles(device: LinuxDevice): Obstacle[] {
    return deviceObstacles(this.#roots, device);
  }

  /** Returns the obstacle behind the kernel's refusal to open or bind a device. */
  explain(device: LinuxDevice, error: UapiError): Obstacle {
    return explainRefusal(this.#roots, device, error);
  }

  /** Returns the VFIO driver that a device has, or else the one that it would get. */
  vfioDriver(device: LinuxDevice): string {
    const has = device.vfio === null ? null : device.driver;
    return has ?? vfioDriverFor(this.#roots, device).driver;
  }

  /** Opens /dev/iommu. @throws UapiError ENOENT without iommufd, EACCES without the right to open it; each has a remedy */
  async openIommufd(): Promise<Iommufd> {
    const { iommufd, missing } = this.state();
    if (!iommufd) {
      const [{ code, message, remedy }] = missing;
      throw refusal(code === "IOMMUFD_NOT_PERMITTED" ? "EACCES" : "ENOENT", "open an iommufd", message, remedy);
    }
    const opened = await this.#openers.iommufd(`${this.#roots.dev}/iommu`);
    this.#opened.push(opened);
    return opened;
  }

  /**
   * Opens a device by its character device.
   * @param name a name that {@link devicesCalled} takes: a PCI address `0000:3b:00.1`, an mdev's UUID, a platform device's name
   * @throws UapiError ENODEV for an unknown device, and for one that is not ready to be opened; EACCES without the right;
   * EBUSY for one that is open here already
   */
  async openDevice(name: string): Promise<VfioDevice> {
    const attempted = `open device '${name}'`;
    const [device, ...others] = this.devicesCalled(name, await this.devices());
    if (device === undefined) {
      throw refusal("ENODEV", attempted, "there is no such device", "look at `dirtmap probe --host linux`");
    }
    if (others.length > 0) {
      const ids = [device, ...others].map((one) => one.id).join(", ");
      throw refusal("ENODEV", attempted, `it is the name of ${others.length + 1} devices`, `write one of: ${ids}`);
    }
    const { id } = device;
    if (this.#devices.has(id)) throw refusal("EBUSY", attempted, "it is open", "close it first");
    const cdev = device.vfio?.cdev ?? null;
    if (cdev === null) {
      const [obstacle] = this.obstacles(device);
      const remedy =
        obstacle === undefined ? "bind it to a VFIO driver" : [obstacle.remedy, ...obstacle.commands].join("; ");
      throw refusal("ENODEV", attempted, obstacle?.message ?? "it has no cdev", remedy);
    }
    this.#devices.add(id);
    try {
      const opened = await this.#openers.device({
        id,
        model: device.model,
        cdev,
        onClose: () => this.#devices.delete(id),
      });
      this.#opened.push(opened);
      return opened;
    } catch (error) {
      this.#devices.delete(id);
      throw error;
    }
  }

  /** Closes all that is open, the last first, even if one of them fails. A second call does nothing. */
  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = [];
    for (const opened of this.#opened.splice(0).reverse()) {
      try {
        await opened[Symbol.asyncDispose]();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }
}

function refusal(code: ErrnoName, attempted: string, why: string, remedy: string): UapiError {
  return new UapiError(code, { syscall: "open", attempted: `${attempted}: ${why}`, remedy });
}
