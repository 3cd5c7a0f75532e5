import { type Command, InvalidArgumentError, Option } from "commander";
import type { ServableModel } from "../../devices/servable.js";
import { UsageError } from "../../errors.js";
import { parseSize, writeSize } from "../../units.js";
import { EXIT_CODES } from "../exit-codes.js";
import { argument, oneOf } from "../input/options.js";
import { note, printResult, runCommand } from "../output.js";
import { addDeviceResume, addDeviceStatus } from "../run/device/control.js";

const DMA = ["auto", "messages"] as const;

interface DeviceOptions {
  readonly socket?: string;
  readonly socketGroup?: string;
  readonly option?: Readonly<Record<string, string>>;
  readonly id?: string;
  readonly dma?: (typeof DMA)[number];
  readonly poll?: boolean;
  readonly untilStdinEnds?: boolean;
  readonly json?: boolean;
}

/** `name=value`, as often as wanted; the last one of a name wins. */
function pair(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError(`'${text}' has no value; write NAME=VALUE`);
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

/** `dirtmap device`: serves one over vfio-user. @param models that there are: its help lists them */
export function addDevice(program: Command, models: readonly ServableModel[]): void {
  const device = program
    .command("device")
    .description("Serves a device to another process (QEMU, a migration) over a vfio-user socket")
    .argument("<model>", "which device; below is what there is")
    .option("--socket <path>", "where its client connects; those who control it connect to PATH.control (required)")
    .option("--socket-group <group>", "let a group connect, too, by name or number (default: only this user)")
    .option("-o, --option <name=value...>", "an option of the model: see below", pair)
    .option("--id <name>", "its name in stamps and messages (default: the model's)")
    .addOption(
      new Option(
        "--dma <mode>",
        "auto: the client's memory is mapped where it can be; messages: the client is asked to write it, and so sees every write",
      ).argParser(argument(oneOf(DMA, "mode"))),
    )
    .option("--poll", "busy polling: a tenth of the latency, for a core's whole time")
    .option("--until-stdin-ends", "end when standard input does: with whoever holds its other end")
    .option("--json", "print events as lines of JSON")
    .addHelpText("after", () => `\n${modelsText(models)}\n${EXAMPLES}`)
    .action((model: string, options: DeviceOptions) => run(model, models, options));
  addDeviceStatus(device);
  addDeviceResume(device);
}

const EXAMPLES = `
It serves until Ctrl-C or SIGTERM, which removes the sockets. One client at a time: a second is refused. A socket that a
killed server has left at PATH is taken over. When a migration dies, the device runs again, unless the migration has said
that it gives the machine up: \`dirtmap device status\` tells, and \`dirtmap device resume\` decides.

Examples:
  dirtmap device mlx5 --socket /run/user/1000/mlx5
  dirtmap device mlx5 --socket /run/mlx5 --socket-group kvm
  dirtmap device vgpu --socket ./vgpu --option vram=64M --option rate=200 --poll
  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
    -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"./vgpu"}}'`;

function modelsText(models: readonly ServableModel[]): string {
  const lines = models.flatMap(({ name, summary, options }) => [
    `  ${name.padEnd(12)} ${summary}`,
    ...options.map(({ name: option, about, default: value, required, kind }) => {
      const fallback =
        required === true
          ? "required"
          : value === undefined
            ? ""
            : `default: ${kind === "size" && typeof value === "number" ? writeSize(value) : value}`;
      return `      ${option.padEnd(12)} ${about}${fallback === "" ? "" : ` (${fallback})`}`;
    }),
  ]);
  return ["Models, and their options:", ...lines].join("\n");
}

async function run(name: string, models: readonly ServableModel[], options: DeviceOptions): Promise<void> {
  const { socket: path, socketGroup, json = false, poll = false, id, dma } = options;
  const tell = (event: { event: string } & Record<string, unknown>, text: string) => {
    if (json) printResult(event, { json, text: () => text });
    else note(text);
  };
  await runCommand({ json }, async (signal) => {
    // Not required of `status` and `resume`, of which commander would require it, too.
    if (path === undefined) {
      throw new UsageError("the device has no socket", { code: "BAD_OPTION", remedy: "give --socket PATH" });
    }
    const { serveDevice } = await import("../../vfio-user/server/server.js");
    const model = models.find((candidate) => candidate.name === name);
    await using server = await serveDevice({
      model: name,
      options: Object.fromEntries(
        Object.entries(options.option ?? {}).map(([option, text]) => [option, optionValue(model, option, text)]),
      ),
      path,
      busy: poll,
      log: (line) => tell({ event: "log", line }, line),
      ...(id === undefined ? {} : { id }),
      ...(dma === undefined ? {} : { dma }),
      ...(socketGroup === undefined ? {} : { socketGroup }),
    });
    const { controlPath: control } = server;
    tell(
      { event: "ready", model: name, socket: path, control },
      `serving ${name} at ${path}, controlled at ${control}`,
    );
    const interrupted = new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    await Promise.race([server.ended, interrupted, ...(options.untilStdinEnds === true ? [stdinEnded()] : [])]);
    return EXIT_CODES.done.code;
  });
}

/** Resolves when there will be no more on standard input. */
function stdinEnded(): Promise<void> {
  return new Promise((resolve) => {
    process.stdin
      .once("end", resolve)
      .once("close", resolve)
      .once("error", () => resolve())
      .resume();
  });
}

/** The text as the option's kind of value; what is none is left as it is, to be refused with the others. */
function optionValue(model: ServableModel | undefined, name: string, text: string): string | number {
  const kind = model?.options.find((option) => option.name === name)?.kind;
  if (kind === "size") return parseSize(text);
  return kind === "number" && /^\d{1,15}(\.\d{1,6})?$/.test(text) ? Number(text) : text;
}
