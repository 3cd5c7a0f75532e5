import { type Command, Option } from "commander";
import { checkStreamAddress } from "../../../qemu/stream-address.js";
import { argument, nonEmpty } from "./values.js";

/** The guest of a QEMU, instead of a scenario's machine. */
export interface QemuOptions {
  readonly qmp?: string;
  readonly qemuAddress?: string;
}

/** Adds the options of {@link QemuOptions}. @param its what is said of the QEMU: "whose guest is moved" */
export function addQemuOptions(command: Command, its: string): Command {
  return command
    .addOption(new Option("--qmp <path>", `reach the QEMU ${its} at this QMP socket`).argParser(argument(nonEmpty)))
    .addOption(
      new Option(
        "--qemu-address <address>",
        "have QEMU's own stream go from the source to the destination at tcp:HOST:PORT or unix:PATH, which both sides name",
      ).argParser(argument(checkStreamAddress)),
    );
}
