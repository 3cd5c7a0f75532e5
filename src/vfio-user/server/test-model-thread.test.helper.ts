import { runServerThread } from "./run-server-thread.js";
import { TestModel } from "./test-model.test.helper.js";

/*
 * For tests: the entry of a server's thread that serves a TestModel.
 */

await runServerThread(() => ({ model: new TestModel(), turnEventLoop: false }));
