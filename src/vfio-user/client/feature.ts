import { UapiError } from "../../uapi/errno.js";
import {
  type DeviceFeature,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
} from "../../uapi/vfio.js";
import { VFIO_USER_COMMAND } from "../../uapi/vfio-user.js";
import type { Connection } from "./connection.js";

const HEAD = vfio_device_feature.size;

/** True where the server says that the device has the feature. @throws UapiError of the connection */
export async function probeFeature(connection: Connection, feature: DeviceFeature): Promise<boolean> {
  try {
    await send(connection, feature, VFIO_DEVICE_FEATURE_PROBE, { data: new Uint8Array(0), room: 0 });
    return true;
  } catch (error) {
    // ENOTTY is the kernel's; other servers say EINVAL, or that they don't know the command.
    if (connection.failure !== undefined || !(error instanceof UapiError)) throw error;
    return false;
  }
}

/**
 * VFIO_USER_DEVICE_FEATURE with GET: returns the data behind struct vfio_device_feature.
 * @param data that goes along
 * @param bytes of data that the answer has
 * @throws UapiError EPROTO for one that has more or fewer
 */
export function getFeature(
  connection: Connection,
  feature: DeviceFeature,
  bytes: number,
  data = new Uint8Array(0),
): Promise<Uint8Array> {
  return send(connection, feature, VFIO_DEVICE_FEATURE_GET, { data, room: bytes });
}

/** VFIO_USER_DEVICE_FEATURE with SET: returns the data behind struct vfio_device_feature, as the server answered it. */
export function setFeature(
  connection: Connection,
  feature: DeviceFeature,
  data: Uint8Array = new Uint8Array(0),
): Promise<Uint8Array> {
  return send(connection, feature, VFIO_DEVICE_FEATURE_SET, { data, room: data.byteLength });
}

async function send(
  connection: Connection,
  feature: DeviceFeature,
  operation: number,
  { data, room }: { data: Uint8Array; room: number },
): Promise<Uint8Array> {
  const request = new Uint8Array(HEAD + data.byteLength);
  vfio_device_feature.encode({ argsz: HEAD + room, flags: VFIO_DEVICE_FEATURE[feature] | operation }, request);
  request.set(data, HEAD);
  const name = `VFIO_DEVICE_FEATURE_${feature}`;
  const answer = await connection.call(VFIO_USER_COMMAND.DEVICE_FEATURE, name, request);
  return answer.subarray(HEAD);
}
