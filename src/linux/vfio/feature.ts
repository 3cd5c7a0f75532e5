import type { OpenFile } from "../../sys/open-file.js";
import { isErrno } from "../../uapi/errno.js";
import type { IoctlRequest } from "../../uapi/ioctl.js";
import type { Fields, Given, Struct, Values } from "../../uapi/struct.js";
import {
  type DeviceFeature,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_IOCTL,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
} from "../../uapi/vfio.js";

/*
 * VFIO_DEVICE_FEATURE: one ioctl for all features, each with a structure of its own behind struct vfio_device_feature.
 */

/** PROBE: true if the device has the feature. Asks nothing of the device itself, so that it returns at once. */
export function probeFeature(file: OpenFile, feature: DeviceFeature): boolean {
  const argument = vfio_device_feature.encode({
    argsz: vfio_device_feature.size,
    flags: VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE[feature],
  });
  try {
    file.ioctl(requestOf(feature), argument, () => `ask '${file.name}' for ${feature}`);
    return true;
  } catch (error) {
    // Linux answers ENOTTY to what a device lacks, but EINVAL to PRECOPY_INFOv2 on one without pre-copy.
    if (isErrno(error, "ENOTTY") || (feature === "MIG_PRECOPY_INFOv2" && isErrno(error, "EINVAL"))) return false;
    throw error;
  }
}

/** GET: hands the structure in and returns it as the kernel left it. @throws UapiError ENOTTY … */
export async function getFeature<Of extends Fields>(
  file: OpenFile,
  feature: DeviceFeature,
  layout: Struct<Of>,
  values: Given<Of>,
  attempted: () => string,
): Promise<Values<Of>> {
  const argument = encode(feature, VFIO_DEVICE_FEATURE_GET, layout, values);
  await file.ioctlOnThread(requestOf(feature), argument, attempted);
  return layout.decode(argument, vfio_device_feature.size);
}

/** SET: hands the structure in and returns it as the kernel left it. @throws UapiError ENOTTY … */
export async function setFeature<Of extends Fields>(
  file: OpenFile,
  feature: DeviceFeature,
  layout: Struct<Of>,
  values: Given<Of>,
  attempted: () => string,
): Promise<Values<Of>> {
  const argument = encode(feature, VFIO_DEVICE_FEATURE_SET, layout, values);
  await file.ioctlOnThread(requestOf(feature), argument, attempted);
  return layout.decode(argument, vfio_device_feature.size);
}

/** SET of a feature that carries no structure. @throws UapiError ENOTTY … */
export async function switchFeature(file: OpenFile, feature: DeviceFeature, attempted: () => string): Promise<void> {
  const argument = vfio_device_feature.encode({
    argsz: vfio_device_feature.size,
    flags: VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE[feature],
  });
  await file.ioctlOnThread(requestOf(feature), argument, attempted);
}

function encode<Of extends Fields>(feature: DeviceFeature, operation: number, layout: Struct<Of>, values: Given<Of>) {
  const argsz = vfio_device_feature.size + layout.size;
  const argument = vfio_device_feature.encode(
    { argsz, flags: operation | VFIO_DEVICE_FEATURE[feature] },
    new Uint8Array(argsz),
  );
  return layout.encode(values, argument, vfio_device_feature.size);
}

/** The ioctl under the feature's name, which errors carry. */
function requestOf(feature: DeviceFeature): IoctlRequest {
  return { name: `VFIO_DEVICE_FEATURE_${feature}`, number: VFIO_DEVICE_FEATURE_IOCTL.number };
}
