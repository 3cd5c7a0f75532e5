import type { ContainerTracking, KernelDesigns } from "../../host/designs.js";
import type { Host, Iommufd, VfioDevice } from "../../host/host.js";
import { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import { ROOTS, type Roots } from "../roots.js";
import type { LinuxDevice } from "../sysfs/device.js";
import { findDevices } from "../sysfs/find.js";
import { devicesCalled } from "../sysfs/name.js";
import { CONTAINER_PATH, LinuxType1Container } from "./container.js";
import { Type1VfioDevice } from "./device.js";
import { CONTAINER_IOAS, Type1Iommufd } from "./type1-iommufd.js";

/** The options of {@link Type1Host.open}. */
export interface Type1HostOptions {
  /** The container's device file. Default: `/dev/vfio/vfio`. `/dev/iommu` works too, but without dirty pages. */
  readonly path?: string;
  readonly roots?: Roots;
}

/**
 * This machine's kernel through its legacy interface: devices are opened through their groups, all in one type1 container.
 *
 * On Linux a device is opened either this way, or by its character device and bound to an iommufd, never both at once. So a
 * machine is on type1 from the start. Its iommufd is the container, with one IOAS, and the design `type1` reads the dirty pages
 * of that container. It can't be compared with other designs on the same open devices.
 */
export class Type1Host implements Host, KernelDesigns {
  readonly name = "linux-type1";
  readonly container: LinuxType1Container;
  readonly #iommufd: Type1Iommufd;
  readonly #roots: Roots;
  readonly #open = new Map<string, VfioDevice>();
  readonly #lock = new Lock();
  #lastId = CONTAINER_IOAS;

  private constructor(container: LinuxType1Container, roots: Roots) {
    this.container = container;
    this.#iommufd = new Type1Iommufd(container);
    this.#roots = roots;
  }

  /** Opens a container. @throws UapiError ENOENT or EOPNOTSUPP for a kernel without containers, EACCES without the right to it */
  static async open({ path = CONTAINER_PATH, roots = ROOTS }: Type1HostOptions = {}): Promise<Type1Host> {
    return new Type1Host(await LinuxType1Container.open({ path }), roots);
  }

  /** Lists every device that is assigned or could be, and opens none. */
  async devices(): Promise<LinuxDevice[]> {
    return findDevices(this.#roots);
  }

  /** Returns the container, which is always the same. This host closes it. */
  async openIommufd(): Promise<Iommufd> {
    return this.#iommufd;
  }

  /** Opens a device. @throws UapiError ENODEV for an unknown device or one without an IOMMU group; and those of the container */
  openDevice(name: string): Promise<VfioDevice> {
    return this.#lock.run(async () => {
      const [device, ...others] = devicesCalled(this.#roots, name, await this.devices());
      if (device === undefined)
        throw refusal(`open device '${name}'`, "there is none: look at `dirtmap probe --host linux`");
      if (others.length > 0) {
        const ids = [device, ...others].map((one) => one.id).join(", ");
        throw refusal(`open device '${name}'`, `it is the name of several: write one of ${ids}`);
      }
      const { id, model, mdev } = device;
      const file = await this.container.addDevice({ id, group: groupOf(device), mdev: mdev !== null });
      const opened = await Type1VfioDevice.ofGroup({ id, model, onClose: () => this.#open.delete(id) }, file, {
        iommufd: this.#iommufd,
        deviceId: ++this.#lastId,
        leave: () => this.container.removeDevice(id),
      });
      this.#open.set(id, opened);
      return opened;
    });
  }

  /**
   * Opens the design `type1` on the container that the devices are in. It tracks all that is mapped there.
   * @throws UapiError EOPNOTSUPP for a design that no Linux has; EINVAL unless the members are this container's devices,
   * all and no others
   */
  async openContainer({ design, members }: Parameters<KernelDesigns["openContainer"]>[0]): Promise<ContainerTracking> {
    const call = { syscall: "VFIO_IOMMU_DIRTY_PAGES", attempted: `track dirty pages by the design '${design}'` };
    if (design !== "type1") {
      throw new UapiError("EOPNOTSUPP", { ...call, remedy: "Linux has 'type1' alone; the emulated host has all" });
    }
    const strange = members.some(({ device }) => device.iommufd !== this.#iommufd);
    if (strange || members.length !== this.#open.size) {
      throw new UapiError("EINVAL", { ...call, remedy: "name the devices of the container, all and no others" });
    }
    const { container } = this;
    return {
      reportsEverything: !container.pinnedScope,
      readableWhen: "always",
      start: () => container.dirtyPagesStart(),
      getBitmap: (query) => container.dirtyPagesGetBitmap(query),
      stop: () => container.dirtyPagesStop(),
      [Symbol.asyncDispose]: () => container.dirtyPagesStop(),
    };
  }

  /** Closes the devices that are still open, the last first, then the container with all its mappings. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      for (const device of [...this.#open.values()].reverse()) await device[Symbol.asyncDispose]();
    } finally {
      await this.container[Symbol.asyncDispose]();
    }
  }
}

function groupOf({ id, group, mdev }: LinuxDevice) {
  if (group !== null && (mdev !== null || !group.noIommu)) return group;
  throw refusal(
    `open the group of '${id}': no IOMMU is in front of it`,
    "switch the IOMMU on in the firmware's settings and in the kernel (intel_iommu=on on Intel)",
  );
}

function refusal(attempted: string, remedy: string): UapiError {
  return new UapiError("ENODEV", { syscall: "open", attempted, remedy });
}
