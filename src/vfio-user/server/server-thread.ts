import { servableModel } from "../../devices/servable-models.js";
import { runServerThread } from "./run-server-thread.js";

/*
 * The entry of a server's thread.
 */

await runServerThread(({ model, options, id }) => {
  const servable = servableModel(model);
  return { model: servable.create(options, id), turnEventLoop: servable.needsEventLoop };
});
