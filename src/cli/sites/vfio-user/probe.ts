import type { DeviceCapabilities } from "../../../tracking/capabilities.js";
import type { Policy, TrackerChoice } from "../../../tracking/choice.js";
import { chooseTrackers } from "../../../tracking/policy.js";
import { probeDevice } from "../../../tracking/probe.js";
import { isErrno } from "../../../uapi/errno.js";
import type { ServerCounters } from "../../../vfio-user/client/counters.js";
import type { VfioUserDevice } from "../../../vfio-user/client/device.js";
import type { VfioUserHost } from "../../../vfio-user/client/host.js";
import { checkDevices } from "../../input/policy.js";

/** What was found out about a served device. */
export interface ProbedServer extends DeviceCapabilities {
  /** What the server tells besides; null: it is not Dirtmap's. */
  readonly server: Pick<ServerCounters, "state" | "failure" | "log"> | null;
}

/**
 * Asks each device what it can do, and chooses its tracker.
 * @throws UapiError for a server that is not there; UsageError `UNKNOWN_DEVICE` for a device that the policy names and
 * nobody serves, and what {@link chooseTrackers} throws
 */
export async function planServers(host: VfioUserHost, policy: Policy): Promise<TrackerChoice[]> {
  const probed = await probeServers(host);
  checkDevices(
    probed.map(({ id }) => id),
    [policy.trackers, policy.granules, policy.untrackedDevices].flatMap(Object.keys),
  );
  return chooseTrackers(probed, policy);
}

/** Asks each device what it can do. @throws UapiError for a server that is not there */
export async function probeServers(host: VfioUserHost): Promise<ProbedServer[]> {
  const probed: ProbedServer[] = [];
  for (const { id } of await host.devices()) {
    await using iommufd = await host.openIommufd();
    await using vfio = await open(host, id);
    const { model } = vfio;
    const deviceId = await vfio.bind(iommufd);
    const capabilities = await probeDevice({ id, model, vfio, iommufd, deviceId, mdev: false }, null);
    const counters = await vfio.serverCounters();
    probed.push({
      ...capabilities,
      server: counters && { state: counters.state, failure: counters.failure, log: counters.log },
    });
  }
  return probed;
}

/** Over the control socket, which leaves the device as it is; another server has none. */
async function open(host: VfioUserHost, id: string): Promise<VfioUserDevice> {
  try {
    return await host.openControl(id);
  } catch (error) {
    if (!isErrno(error, "ENOENT") && !isErrno(error, "ECONNREFUSED")) throw error;
    return host.openDevice(id);
  }
}
