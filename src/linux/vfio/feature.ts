import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { FeatureTransport } from "../../host/device-feature.js";
import type { Call } from "../../host/iommufd-checks.js";
import { addressOf } from "../../sys/address.js";
import type { OpenFile } from "../../sys/open-file.js";
import { populateOnThread } from "../../sys/populate.js";
import { isErrno } from "../../uapi/errno.js";
import type { IoctlRequest } from "../../uapi/ioctl.js";
import {
  type DeviceFeature,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_IOCTL,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_DEVICE_RESET,
  vfio_device_feature,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_report,
} from "../../uapi/vfio.js";

const HEAD = vfio_device_feature.size;

/** VFIO_DEVICE_FEATURE: one ioctl for all features, each with a structure of its own behind struct vfio_device_feature. */
export class IoctlFeatures implements FeatureTransport {
  readonly #file: OpenFile;

  constructor(file: OpenFile) {
    this.#file = file;
  }

  /** Asks nothing of the device itself, so that it returns at once. */
  async probe(feature: DeviceFeature): Promise<boolean> {
    const argument = argumentOf(feature, VFIO_DEVICE_FEATURE_PROBE, new Uint8Array(0));
    try {
      this.#file.ioctl(requestOf(feature), argument, () => `ask '${this.#file.name}' for ${feature}`);
      return true;
    } catch (error) {
      // Linux answers ENOTTY to what a device lacks, but EINVAL to PRECOPY_INFOv2 on one without pre-copy.
      if (isErrno(error, "ENOTTY") || (feature === "MIG_PRECOPY_INFOv2" && isErrno(error, "EINVAL"))) return false;
      throw error;
    }
  }

  async get(feature: DeviceFeature, structure: Uint8Array, call: Call, bitmap?: DirtyBitmap): Promise<Uint8Array> {
    const argument = argumentOf(feature, VFIO_DEVICE_FEATURE_GET, structure);
    if (bitmap !== undefined) {
      const { length, page_size } = vfio_device_feature_dma_logging_report.decode(structure);
      setPointer(argument, vfio_device_feature_dma_logging_report.offsetOf("bitmap"), bitmap.address);
      const bits = (length + page_size - 1n) / page_size;
      await populateOnThread({ address: bitmap.address, bytes: Math.ceil(Number(bits) / 8) });
    }
    await this.#file.ioctlOnThread(requestOf(feature), argument, () => call.attempted);
    return argument.subarray(HEAD);
  }

  async set(feature: DeviceFeature, structure: Uint8Array, call: Call, array?: Uint8Array): Promise<Uint8Array> {
    const argument = argumentOf(feature, VFIO_DEVICE_FEATURE_SET, structure);
    if (array !== undefined) {
      setPointer(argument, vfio_device_feature_dma_logging_control.offsetOf("ranges"), addressOf(array));
    }
    await this.#file.ioctlOnThread(requestOf(feature), argument, () => call.attempted);
    // What the kernel was given must live until it has answered.
    array?.fill(0);
    return argument.subarray(HEAD);
  }

  async reset(call: Call): Promise<void> {
    await this.#file.ioctlOnThread(VFIO_DEVICE_RESET, new Uint8Array(0), () => call.attempted);
  }
}

function argumentOf(feature: DeviceFeature, operation: number, structure: Uint8Array): Uint8Array {
  const argument = new Uint8Array(HEAD + structure.byteLength);
  vfio_device_feature.encode({ argsz: argument.byteLength, flags: operation | VFIO_DEVICE_FEATURE[feature] }, argument);
  argument.set(structure, HEAD);
  return argument;
}

function setPointer(argument: Uint8Array, offset: number, address: number | bigint): void {
  new DataView(argument.buffer).setBigUint64(HEAD + offset, BigInt(address), true);
}

/** The ioctl under the feature's name, which errors carry. */
function requestOf(feature: DeviceFeature): IoctlRequest {
  return { name: `VFIO_DEVICE_FEATURE_${feature}`, number: VFIO_DEVICE_FEATURE_IOCTL.number };
}
