import { type Command, Option } from "commander";
import { argument, oneOf } from "../../input/options/values.js";
import { runBy } from "../../run-command.js";

const DMA = ["auto", "messages"] as const;

export interface DeviceProxyInput {
  /** Not required by commander: `device` has an option of this name, too. */
  readonly server?: string;
  readonly socket?: string;
  readonly socketGroup?: string;
  readonly id?: string;
  readonly dma?: (typeof DMA)[number];
  readonly incoming?: boolean;
  readonly untilStdinEnds?: boolean;
  readonly json?: boolean;
}

const NOTES = `
For servers of other programs, such as those made with libvfio-user: \`probe\`, \`plan\`, \`migrate --qmp\` and
\`device status\` then work with their devices. Mapped BARs, interrupts and guest memory pass straight through; register
accesses by message take a second hop. What the server lacks is a line in the log. The server must run already. If it ends, the
device's client is disconnected, and the server is looked for until it is back.

Examples:
  dirtmap device proxy --server /var/run/nvmf/cntrl --socket ./nvme
  dirtmap device proxy --server ./gpu --socket ./gpu-proxy --id gpu --dma messages
  dirtmap device proxy --server /var/run/nvmf/cntrl --socket ./nvme2 --incoming`;

/** `dirtmap device proxy`: the control connection that another program's server lacks. */
export function declareDeviceProxy(device: Command): Command {
  const command = device
    .command("proxy")
    .description("stand before another program's vfio-user server, so that its device can be tracked and moved")
    .option("--server <path>", "connect to the server that has the device (required)")
    .option("--socket <path>", "listen for the client here, and for control connections at PATH.control (required)")
    .option("--socket-group <group>", "let a group connect, too, by name or number (default: only this user)")
    .option("--id <name>", "set its name in stamps and messages (default: device)")
    .addOption(
      new Option(
        "--dma <mode>",
        "choose what the server is given of the client's memory: auto (what the client shares), messages (nothing: its writes pass here, and are tracked here)",
      ).argParser(argument(oneOf(DMA, "mode"))),
    )
    .option("--incoming", "wait for the state of a device that is migrated here")
    .option("--until-stdin-ends", "end when standard input does")
    .option("--json", "print events as lines of JSON")
    .addHelpText("after", NOTES);
  return runBy<DeviceProxyInput>(command, () => import("../../run/device/proxy.js"));
}
