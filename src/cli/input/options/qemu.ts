import { type Command, Option } from "commander";
import { checkStreamAddress } from "../../../qemu/stream-address.js";
import { argument, nonEmpty } from "./values.js";

/** Which QEMU is meant. */
export interface GuestOptions {
  readonly qmp?: string;
  readonly libvirt?: string;
  readonly connect?: string;
}

/** The guest of a QEMU, instead of a scenario's machine. */
export interface QemuOptions extends GuestOptions {
  readonly qemuAddress?: string;
}

/** Adds the options of {@link GuestOptions}. @param its what is said of the QEMU: "whose guest is moved" */
export function addGuestOptions(command: Command, its: string): Command {
  return command
    .addOption(new Option("--qmp <path>", `reach the QEMU ${its} at this QMP socket`).argParser(argument(nonEmpty)))
    .addOption(
      new Option("--libvirt <domain>", "reach it through virsh instead, as this domain of libvirt's").argParser(
        argument(nonEmpty),
      ),
    )
    .addOption(
      new Option(
        "--connect <uri>",
        "have virsh connect to this libvirt, instead of the one that it chooses itself",
      ).argParser(argument(nonEmpty)),
    );
}

/** Adds the options of {@link QemuOptions}. @param its as {@link addGuestOptions} takes it */
export function addQemuOptions(command: Command, its: string): Command {
  return addGuestOptions(command, its).addOption(
    new Option(
      "--qemu-address <address>",
      "have QEMU's own stream go from the source to the destination at tcp:HOST:PORT or unix:PATH, which both sides name",
    ).argParser(argument(checkStreamAddress)),
  );
}
