import { constants } from "node:fs";
import { OpenFile } from "../../sys/open-file.js";
import { isErrno, UapiError } from "../../uapi/errno.js";
import {
  VFIO_GROUP_FLAGS_CONTAINER_SET,
  VFIO_GROUP_FLAGS_VIABLE,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  vfio_group_status,
} from "../../uapi/vfio.js";

/** An IOMMU group, as far as an open group goes. */
export interface GroupIdentity {
  readonly id: number;
  /** The devices in it, and which drivers keep it from being assigned. */
  readonly members: readonly { readonly id: string; readonly driver: string | null; readonly holdsBack: boolean }[];
}

/**
 * An open VFIO group, /dev/vfio/$GROUP: how devices were opened before they had character devices of their own. Linux
 * lets it be opened once at a time, and not while one of its devices is open by its character device. The descriptors of
 * its devices keep it open, and its container.
 */
export class VfioGroup implements AsyncDisposable {
  readonly id: number;
  readonly #members: GroupIdentity["members"];
  readonly #file: OpenFile;

  private constructor({ id, members }: GroupIdentity, file: OpenFile) {
    this.id = id;
    this.#members = members;
    this.#file = file;
  }

  /** @throws UapiError ENOENT, EACCES, EBUSY (open already, or one of its devices is, by its character device) … */
  static async open(group: GroupIdentity): Promise<VfioGroup> {
    const { id } = group;
    const file = await OpenFile.open(`/dev/vfio/${id}`, constants.O_RDWR, {
      name: `VFIO group ${id}`,
      remedy: (code) => {
        if (code === "ENOENT") {
          return "bind a device of the group to a VFIO driver (vfio-pci); the kernel needs CONFIG_VFIO_GROUP";
        }
        if (code === "EBUSY") {
          return "close it where it is open: a group is opened once, and not while one of its devices is open as /dev/vfio/devices/vfio*";
        }
        return code === "EACCES" ? `let this user read and write /dev/vfio/${id}, or run as root` : undefined;
      },
    });
    return new VfioGroup(group, file);
  }

  /** VFIO_GROUP_GET_STATUS. `viable`: no member's DMA is managed by a driver of the kernel. @throws UapiError */
  status(): { viable: boolean; containerSet: boolean } {
    const status = vfio_group_status.encode({ argsz: vfio_group_status.size });
    this.#file.ioctl(VFIO_GROUP_GET_STATUS, status, () => `get the status of VFIO group ${this.id}`);
    const { flags } = vfio_group_status.decode(status);
    return {
      viable: (flags & VFIO_GROUP_FLAGS_VIABLE) !== 0,
      containerSet: (flags & VFIO_GROUP_FLAGS_CONTAINER_SET) !== 0,
    };
  }

  /**
   * VFIO_GROUP_SET_CONTAINER: to an open container, or an iommufd in its place. Where the container has its IOMMU
   * already, that must do for this group, too; what is mapped is mapped for it.
   * @throws UapiError EPERM for a group with a member that a driver of the kernel uses; EINVAL for one that is in a
   * container; and what the IOMMU answers
   */
  async setContainer(container: OpenFile): Promise<void> {
    const argument = new Int32Array([container.fd("VFIO_GROUP_SET_CONTAINER")]);
    const attempted = () => `put VFIO group ${this.id} into a container`;
    try {
      await this.#file.ioctlOnThread(VFIO_GROUP_SET_CONTAINER, new Uint8Array(argument.buffer), attempted);
    } catch (cause) {
      if (!isErrno(cause, "EPERM") || this.status().viable) throw cause;
      throw new UapiError("EPERM", {
        syscall: cause.syscall,
        attempted: attempted(),
        remedy: this.#whoHoldsBack(),
        cause,
      });
    }
  }

  /**
   * VFIO_GROUP_UNSET_CONTAINER. With the last group the container loses its IOMMU and all mappings.
   * @throws UapiError EBUSY while a device is open, EINVAL without a container
   */
  async unsetContainer(): Promise<void> {
    await this.#file.ioctlOnThread(
      VFIO_GROUP_UNSET_CONTAINER,
      new Uint8Array(0),
      () => `take VFIO group ${this.id} out of its container`,
    );
  }

  /**
   * VFIO_GROUP_GET_DEVICE_FD: opens a device. Again is allowed, and gives another descriptor.
   * @param device its name in sysfs
   * @throws UapiError ENODEV for a device that isn't in the group or isn't on a VFIO driver; EINVAL without a container
   * that has its IOMMU
   */
  openDevice(device: string): OpenFile {
    const name = Buffer.from(`${device}\0`, "utf8");
    const fd = this.#file.ioctl(VFIO_GROUP_GET_DEVICE_FD, name, () => `open ${device} in VFIO group ${this.id}`);
    return new OpenFile(fd, `device '${device}'`);
  }

  /** Closes the group; it leaves its container once its devices are closed, too. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#file[Symbol.asyncDispose]();
  }

  #whoHoldsBack(): string {
    const holders = this.#members.filter(({ holdsBack }) => holdsBack);
    if (holders.length === 0) return `find out who else uses the devices of IOMMU group ${this.id} for DMA`;
    const names = holders.map(({ id, driver }) => `${id} (${driver})`).join(", ");
    return `IOMMU group ${this.id} is assigned as a whole: unbind ${names}, or bind to vfio-pci too`;
  }
}
