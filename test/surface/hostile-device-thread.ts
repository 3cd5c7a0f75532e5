import type { DeviceContext } from "../../src/devices/model.js";
import { runServerThread } from "../../src/vfio-user/server/run-server-thread.js";
import type { ServedDevice } from "../../src/vfio-user/server/served-device.js";
import { SampleDevice } from "../interop/sample-device.js";
import { HOSTILE } from "./hostile-text.js";

/*
 * The entry of a server's thread whose device has failed, for a reason that is not fit to be printed.
 */

class HostileDevice extends SampleDevice {
  override async start(context: DeviceContext): Promise<void> {
    await super.start(context);
    (context as ServedDevice).fail(HOSTILE.replaceAll("\n", " "));
  }
}

await runServerThread(() => ({ model: new HostileDevice(), turnEventLoop: false }));
