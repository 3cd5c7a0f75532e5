import { runServerThread } from "../../src/vfio-user/server/run-server-thread.js";
import { BenchModel } from "./model.js";

/*
 * The entry of a server's thread that serves a BenchModel.
 */

await runServerThread(() => ({ model: new BenchModel(), turnEventLoop: false }));
