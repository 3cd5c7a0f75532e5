import type { ContainerTracking, KernelDesigns } from "../../host/designs.js";
import type { AttachedDevice } from "../../host/host.js";
import { UapiError } from "../../uapi/errno.js";
import type { LinuxDevice } from "../sysfs/device.js";
import { LinuxVfioDevice } from "../vfio/device.js";
import { LinuxType1Container } from "./container.js";
import { CONTAINER_IOAS, Type1Iommufd } from "./iommufd.js";

/**
 * Devices opened the legacy way, through their groups, all in one type1 container.
 *
 * On Linux a device is opened either so, or by its character device and bound to an iommufd, never both at once. So a
 * machine is on type1 from the start: its devices' `iommufd` is the container, `ioas` its one address space, and the design
 * `type1` reads the dirty pages of that very container. It can't be compared with other designs on the same open devices.
 */
export class Type1Devices implements KernelDesigns, AsyncDisposable {
  readonly container: LinuxType1Container;
  readonly devices: readonly AttachedDevice[];

  private constructor(container: LinuxType1Container, devices: readonly AttachedDevice[]) {
    this.container = container;
    this.devices = devices;
  }

  /**
   * @param path what does the container's work: see {@link LinuxType1Container.open}
   * @throws UapiError ENODEV for a device without an IOMMU group, and what the container answers; then none is open
   */
  static async open(devices: readonly LinuxDevice[], { path }: { path?: string } = {}): Promise<Type1Devices> {
    const container = await LinuxType1Container.open(path === undefined ? {} : { path });
    try {
      const iommufd = new Type1Iommufd(container);
      const attached: AttachedDevice[] = [];
      for (const device of devices) {
        const { id, model } = device;
        const mdev = device.mdev !== null;
        const file = await container.addDevice({ id, group: groupOf(device), mdev });
        const vfio = await LinuxVfioDevice.ofGroup({ id, model }, file);
        // Ids as an iommufd would give them: the IOAS has the first.
        const deviceId = CONTAINER_IOAS + 1 + attached.length;
        attached.push({ id, model, vfio, iommufd, deviceId, ioas: CONTAINER_IOAS, mdev });
      }
      return new Type1Devices(container, attached);
    } catch (error) {
      await container[Symbol.asyncDispose]();
      throw error;
    }
  }

  /**
   * `type1` on the container that the devices are in: what is mapped there is what is tracked.
   * @throws UapiError EOPNOTSUPP for a design that no Linux has, EINVAL for devices of another container
   */
  async openContainer(args: Parameters<KernelDesigns["openContainer"]>[0]): Promise<ContainerTracking> {
    const { design, members } = args;
    const call = { syscall: "VFIO_IOMMU_DIRTY_PAGES", attempted: `track dirty pages by the design '${design}'` };
    if (design !== "type1") {
      throw new UapiError("EOPNOTSUPP", { ...call, remedy: "Linux has 'type1' alone; the emulated host has all" });
    }
    const missing = this.devices.filter(({ id }) => !members.some(({ device }) => device.id === id));
    const strange = members.filter(({ device }) => !this.devices.includes(device));
    if (missing.length + strange.length > 0) {
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

  /** Closes the devices, the last first, then the container with all its mappings. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      for (const { vfio } of [...this.devices].reverse()) await vfio[Symbol.asyncDispose]();
    } finally {
      await this.container[Symbol.asyncDispose]();
    }
  }
}

function groupOf({ id, group, mdev }: LinuxDevice) {
  if (group !== null && (mdev !== null || !group.noIommu)) return group;
  throw new UapiError("ENODEV", {
    syscall: "open",
    attempted: `open the group of ${id}: no IOMMU is in front of it`,
    remedy: "switch the IOMMU on in the firmware's settings and in the kernel (intel_iommu=on on Intel)",
  });
}
