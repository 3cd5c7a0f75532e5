import { UsageError } from "../../../errors.js";
import { proxyDevice } from "../../../vfio-user/proxy/proxy.js";
import type { DeviceProxyInput } from "../../commands/device/proxy.js";
import { tellEvent } from "../../output.js";
import { type Run, stdinEnded, untilAborted } from "../../run-command.js";

export const run: Run<DeviceProxyInput> = async (input, { signal }) => {
  const { server, socket: path, socketGroup, json = false, incoming = false, id, dma } = input;
  const tell = tellEvent({ json });
  const required = (what: string, remedy: string) => new UsageError(what, { code: "BAD_OPTION", remedy });
  if (server === undefined) throw required("the proxy has no server", "give --server PATH");
  if (path === undefined) throw required("the proxy has no socket", "give --socket PATH");
  await using proxy = await proxyDevice({
    server,
    path,
    incoming,
    log: (line) => tell({ event: "log", line }, line),
    ...(id === undefined ? {} : { id }),
    ...(dma === undefined ? {} : { dma }),
    ...(socketGroup === undefined ? {} : { socketGroup }),
  });
  const { controlPath: control } = proxy;
  tell({ event: "ready", server, socket: path, control }, `serving ${server} at ${path}, controlled at ${control}`);
  await Promise.race([proxy.ended, untilAborted(signal), ...(input.untilStdinEnds === true ? [stdinEnded()] : [])]);
};
