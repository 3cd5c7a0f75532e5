import { existsSync } from "node:fs";
import { UsageError } from "../../../errors.js";
import { isErrno } from "../../../uapi/errno.js";
import type { ServerCounters } from "../../../vfio-user/client/counters.js";
import type { VfioUserDevice } from "../../../vfio-user/client/device.js";
import { openVfioUserHost } from "../hosts.js";

/** A device over its control socket, and what its server tells. */
export interface ControlledDevice extends AsyncDisposable {
  readonly device: VfioUserDevice;
  readonly counters: ServerCounters;
}

/** Opens it. @throws UsageError `NOT_DIRTMAPS` for another server; UapiError where nobody listens */
export async function openControlled(socket: string): Promise<ControlledDevice> {
  const host = await openVfioUserHost([socket]);
  const [{ id }] = await host.devices();
  const foreign = () =>
    new UsageError(`the server at ${socket} is not Dirtmap's`, {
      code: "NOT_DIRTMAPS",
      remedy: "ask that server's own tools",
    });
  const device = await host.openControl(id).catch((error: unknown) => {
    // Another's server has no control socket beside its own.
    throw isErrno(error, "ENOENT") && existsSync(socket) ? foreign() : error;
  });
  const counters = await device.serverCounters();
  if (counters === null) {
    await host[Symbol.asyncDispose]();
    throw foreign();
  }
  return {
    device,
    counters,
    [Symbol.asyncDispose]: () => host[Symbol.asyncDispose](),
  };
}
