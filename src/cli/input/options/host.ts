import { type Command, Option } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { UsageError } from "../../../errors.js";
import { HOSTS } from "./choices.js";
import { argument, oneOf, orElse } from "./values.js";

/** Whose devices are meant: a scenario's on the emulated host, this machine's, or served ones. */
export interface HostOptions {
  readonly host: HostOption;
  /** Devices by name; absent: the command's default. */
  readonly device?: readonly string[];
}

/** The value of `--host`. */
export type HostOption = (typeof HOSTS)[number] | ServedHost;

/** `vfio-user:PATH[,PATH…]`: the devices behind these sockets. */
export type ServedHost = `${typeof SERVED}${string}`;

const SERVED = "vfio-user:";

/** Returns the sockets that a host's name lists; null for another host. */
export function servedSockets(host: HostOption): string[] | null {
  return isServed(host) ? host.slice(SERVED.length).split(",") : null;
}

function isServed(text: string): text is ServedHost {
  return text.startsWith(SERVED);
}

/** Adds `--host`. */
export function addHostOption(command: Command): Command {
  const hosts = [...HOSTS, `${SERVED}PATH[,PATH…]`];
  return command.addOption(
    new Option("--host <host>", `take the devices of a scenario, of this machine, or at sockets: ${hosts.join(", ")}`)
      .argParser(argument((text) => (isServed(text) ? servedHost(text) : oneOf(HOSTS, "host")(text))))
      .default(DEFAULTS.host, DEFAULTS.host),
  );
}

/**
 * Adds the options of {@link HostOptions}.
 * @param devices the devices of this machine that are meant by default
 */
export function addHostOptions(command: Command, devices: string): Command {
  return addHostOption(command).option(
    "--device <id...>",
    `take only these devices: 3b:00.1, an mdev's UUID, eth0, nvme0n1, a path in sysfs, libvirt's pci_0000_3b_00_1${orElse(devices)}`,
  );
}

/** @throws UsageError `BAD_OPTION` for a list with nothing in it */
function servedHost(text: ServedHost): ServedHost {
  if (servedSockets(text)?.every((path) => path !== "")) return text;
  throw new UsageError(`'${text}' names no socket`, { code: "BAD_OPTION", remedy: `write ${SERVED}PATH[,PATH…]` });
}
