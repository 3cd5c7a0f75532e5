import { servableModel } from "../../devices/servable-models.js";
import { runServerThread } from "./run-server-thread.js";

/*
 * The entry of a server's thread.
 */

await runServerThread(({ model, options, id, incoming = false }) => {
  const servable = servableModel(model);
  const made = servable.create(options, { id, incoming });
  return { model: made, turnEventLoop: servable.needsEventLoop, feed: () => servable.feed?.(options, made) };
});
