import type { Iommufd, ObjectId } from "../../host/host.js";
import type { OpenFile } from "../../sys/open-file.js";
import { UapiError } from "../../uapi/errno.js";
import { LinuxVfioDevice, type LinuxVfioDeviceOptions } from "../vfio/device.js";
import { CONTAINER_IOAS } from "./type1-iommufd.js";

/** Where a device is that was opened through its group. */
export interface Type1Place {
  /** The container, as an iommufd. */
  readonly iommufd: Iommufd;
  /** The device's id in it. */
  readonly deviceId: ObjectId;
  /** Closes the device's descriptor, and takes its group out of the container if it is the last one of that. */
  leave(): Promise<void>;
}

/**
 * A VFIO device that was opened through its group (VFIO_GROUP_GET_DEVICE_FD). Its container serves it from the start: it
 * can be used at once, and to bind and to attach it says no more than that it is where it is. Linux lets it be bound to no
 * iommufd (EINVAL) and attached to no page table (ENOTTY).
 */
export class Type1VfioDevice extends LinuxVfioDevice {
  readonly #place: Type1Place;
  #bound = false;
  #leaving: Promise<void> | undefined;

  private constructor(options: Omit<LinuxVfioDeviceOptions, "cdev">, file: OpenFile, place: Type1Place) {
    super(options, file);
    this.#place = place;
  }

  /** Takes over an open descriptor. @throws UapiError; then the device has left the container */
  static async ofGroup(
    options: Omit<LinuxVfioDeviceOptions, "cdev">,
    file: OpenFile,
    place: Type1Place,
  ): Promise<Type1VfioDevice> {
    const device = new Type1VfioDevice(options, file, place);
    try {
      await device.begin();
    } catch (error) {
      await device[Symbol.asyncDispose]();
      throw error;
    }
    return device;
  }

  override async bind(iommufd: Iommufd): Promise<ObjectId> {
    const { iommufd: own, deviceId } = this.#place;
    if (iommufd !== own) return super.bind(iommufd);
    if (this.#bound) {
      throw new UapiError("EINVAL", {
        syscall: "VFIO_DEVICE_BIND_IOMMUFD",
        attempted: `bind '${this.id}' to its container`,
        remedy: "it is bound already",
      });
    }
    this.#bound = true;
    return deviceId;
  }

  override async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    return ioasOrHwpt === CONTAINER_IOAS ? CONTAINER_IOAS : super.attach(ioasOrHwpt);
  }

  override [Symbol.asyncDispose](): Promise<void> {
    this.#leaving ??= super[Symbol.asyncDispose]().finally(() => this.#place.leave());
    return this.#leaving;
  }
}
