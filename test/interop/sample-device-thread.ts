import { runServerThread } from "../../src/vfio-user/server/run-server-thread.js";
import { SampleDevice } from "./sample-device.js";

/*
 * The entry of a server's thread that serves a SampleDevice.
 */

await runServerThread(() => ({ model: new SampleDevice(), turnEventLoop: false }));
