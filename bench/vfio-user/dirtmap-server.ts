import { once } from "node:events";
import { startServer } from "../../src/vfio-user/server/server.js";

/*
 *   node dirtmap-server.js SOCKET block|poll
 *
 * The device that client.c measures, served by Dirtmap, until standard input ends.
 */

const [path, how] = process.argv.slice(2);
const server = await startServer(
  new URL("./model-thread.js", import.meta.url),
  { model: "bench", options: {}, id: "bench", dma: "auto", busy: how === "poll" },
  { path, log: (line) => process.stderr.write(`${line}\n`) },
);
process.stdout.write("ready\n");
await once(process.stdin.resume(), "end");
await server.close();
