import type { LinuxHost } from "../../../linux/host.js";
import type { HostState } from "../../../linux/obstacles/host.js";
import type { Obstacle } from "../../../linux/obstacles/obstacle.js";
import type { LinuxDevice } from "../../../linux/sysfs/device.js";
import type { MdevType } from "../../../linux/sysfs/mdev.js";
import type { DeviceCapabilities } from "../../../tracking/capabilities.js";
import { probeDevice } from "../../../tracking/probe.js";
import { UapiError } from "../../../uapi/errno.js";
import { hwTypeOf } from "./guess.js";

/** What was found out about a device of this machine. */
export interface ProbedDevice {
  readonly device: LinuxDevice;
  /** The VFIO driver that it has, or would get. */
  readonly vfioDriver: string;
  /** What it said itself; null: it could not be asked, and `missing` says why. */
  readonly capabilities: DeviceCapabilities | null;
  /** In the order in which it is to be cleared away; empty where nothing but the host's own lacks are in the way. */
  readonly missing: readonly Obstacle[];
}

/** What was found out about this machine. */
export interface ProbedHost {
  readonly state: HostState;
  readonly devices: readonly ProbedDevice[];
  readonly mdevTypes: readonly MdevType[];
}

/**
 * Asks each device what it can do, and leaves it as it was: unbound and closed. No guest's memory is attached: what GET_HW_INFO
 * and the device's features tell, they tell of a bound device. (To open a PCI device resets it, and to close it does so
 * again; nobody uses one that can be opened.)
 * @param ids which devices; all by default
 * @param signal ends it before the next device
 */
export async function probeHost(
  host: LinuxHost,
  { ids, signal }: { ids?: readonly string[] | undefined; signal?: AbortSignal | undefined } = {},
): Promise<ProbedHost> {
  const state = host.state();
  const found = (await host.devices()).filter(({ id }) => ids === undefined || ids.includes(id));
  const devices: ProbedDevice[] = [];
  for (const device of found) {
    signal?.throwIfAborted();
    devices.push(await probeOne(host, device, state.iommufd));
  }
  return { state, devices, mdevTypes: host.mdevTypes() };
}

async function probeOne(host: LinuxHost, device: LinuxDevice, iommufd: boolean): Promise<ProbedDevice> {
  const missing = host.obstacles(device);
  const known = { device, vfioDriver: host.vfioDriver(device) };
  // Where there is a node the kernel is the judge: what sysfs shows may be out of date, or known to be harmless.
  if (!iommufd || device.vfio?.cdev == null) return { ...known, capabilities: null, missing };
  try {
    return { ...known, capabilities: await ask(host, device), missing: [] };
  } catch (error) {
    if (!(error instanceof UapiError)) throw error;
    return { ...known, capabilities: null, missing: missing.length > 0 ? missing : [host.explain(device, error)] };
  }
}

async function ask(host: LinuxHost, device: LinuxDevice): Promise<DeviceCapabilities> {
  const { id, model, kind } = device;
  // One iommufd each: a device that is refused leaves nothing behind in the next one's.
  await using iommufd = await host.openIommufd();
  await using vfio = await host.openDevice(id);
  const deviceId = await vfio.bind(iommufd);
  const capabilities = await probeDevice({ id, model, vfio, iommufd, deviceId, mdev: kind === "mdev" }, null);
  // An IOMMU that GET_HW_INFO does not name (see probeDevice) has a name in sysfs.
  if (capabilities.iommu?.type !== "none") return capabilities;
  return { ...capabilities, iommu: { ...capabilities.iommu, type: hwTypeOf(device) } };
}
