import type { ServableModel } from "../../devices/servable.js";
import { SERVABLE_MODELS } from "../../devices/servable-models.js";
import { UsageError } from "../../errors.js";
import { parseSize } from "../../units.js";
import { serveDevice } from "../../vfio-user/server/server.js";
import type { DeviceInput } from "../commands/device.js";
import { tellEvent } from "../output.js";
import { type Run, stdinEnded, untilAborted } from "../run-command.js";

export const run: Run<DeviceInput> = async (input, { signal }) => {
  const { model: name, socket: path, socketGroup, json = false, incoming = false, poll = false, id, dma } = input;
  const tell = tellEvent({ json });
  if (path === undefined) {
    throw new UsageError("the device has no socket", { code: "BAD_OPTION", remedy: "give --socket PATH" });
  }
  const model = SERVABLE_MODELS.find((candidate) => candidate.name === name);
  await using server = await serveDevice({
    model: name,
    options: Object.fromEntries(
      Object.entries(input.option ?? {}).map(([option, text]) => [option, optionValue(model, option, text)]),
    ),
    path,
    incoming,
    busy: poll,
    log: (line) => tell({ event: "log", line }, line),
    ...(id === undefined ? {} : { id }),
    ...(dma === undefined ? {} : { dma }),
    ...(socketGroup === undefined ? {} : { socketGroup }),
  });
  const { controlPath: control } = server;
  tell({ event: "ready", model: name, socket: path, control }, `serving ${name} at ${path}, controlled at ${control}`);
  await Promise.race([server.ended, untilAborted(signal), ...(input.untilStdinEnds === true ? [stdinEnded()] : [])]);
};

/** The text as the option's kind of value; what is none is left as it is, to be refused with the others. */
function optionValue(model: ServableModel | undefined, name: string, text: string): string | number {
  const kind = model?.options.find((option) => option.name === name)?.kind;
  if (kind === "size") return parseSize(text);
  return kind === "number" && /^\d{1,15}(\.\d{1,6})?$/.test(text) ? Number(text) : text;
}
