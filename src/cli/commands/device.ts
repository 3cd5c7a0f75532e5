import { type Command, Option } from "commander";
import type { ServableModel } from "../../devices/servable.js";
import { writeSize } from "../../units.js";
import { argument, oneOf, pairs } from "../input/options/values.js";
import { runBy } from "../run-command.js";

const DMA = ["auto", "messages"] as const;

export interface DeviceInput {
  readonly model: string;
  /** Not required by commander, which would require it of `status` and `resume`, too. */
  readonly socket?: string;
  readonly socketGroup?: string;
  readonly option?: Readonly<Record<string, string>>;
  readonly id?: string;
  readonly dma?: (typeof DMA)[number];
  readonly poll?: boolean;
  readonly untilStdinEnds?: boolean;
  readonly json?: boolean;
}

const NOTES = `
It serves until Ctrl-C or SIGTERM, which removes the sockets. It serves one client at a time, and refuses a second. A socket
that a killed server has left at PATH is taken over. When a migration dies, the device runs again, unless the migration has
said that it gives the machine up: \`dirtmap device status\` tells, and \`dirtmap device resume\` decides.

Examples:
  dirtmap device mlx5 --socket /run/user/1000/mlx5
  dirtmap device mlx5 --socket /run/mlx5 --socket-group kvm
  dirtmap device vgpu --socket ./vgpu --option vram=64M --option rate=200 --poll
  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
    -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"./vgpu"}}'`;

/** `dirtmap device`: serves one over vfio-user. @param models that there are: its help lists them */
export function declareDevice(program: Command, models: readonly ServableModel[]): Command {
  const device = program
    .command("device")
    .description("serve a device to another process (QEMU, a migration) over a vfio-user socket")
    .argument("<model>", "the model of the device; see below")
    .option("--socket <path>", "listen for the client here, and for control connections at PATH.control (required)")
    .option("--socket-group <group>", "let a group connect, too, by name or number (default: only this user)")
    .option(
      "--option <name=value...>",
      "set an option of the model; see below",
      pairs("has no value; write NAME=VALUE", (text) => text),
    )
    .option("--id <name>", "set its name in stamps and messages (default: the model's)")
    .addOption(
      new Option(
        "--dma <mode>",
        "choose how to write the client's memory: auto (map it if possible), messages (ask the client, which sees every write)",
      ).argParser(argument(oneOf(DMA, "mode"))),
    )
    .option("--poll", "poll busily: a tenth of the latency, for a core's whole time")
    .option("--until-stdin-ends", "end when standard input does")
    .option("--json", "print events as lines of JSON")
    .addHelpText("after", () => `\n${modelsText(models)}\n${NOTES}`);
  return runBy<DeviceInput>(device, () => import("../run/device.js"));
}

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
