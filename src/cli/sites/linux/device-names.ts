import { UsageError } from "../../../errors.js";
import type { LinuxHost } from "../../../linux/host.js";
import { nearest } from "../../../nearest.js";

/** Turns what operators call this machine's devices into ids. */
export interface DeviceNames {
  /** @throws UsageError `UNKNOWN_DEVICE`, `AMBIGUOUS_DEVICE`: in one line, with what comes near */
  id(name: string): string;
  /** The keys of `--tracker DEV=…` and the like, as ids; of several names of one device the last counts. */
  byId<T>(named: Readonly<Record<string, T>> | undefined): Record<string, T>;
}

/** Ids that an error lists; a machine has dozens of devices. */
const LISTED = 8;

/** The names of the devices that are or could be assigned, as of now. */
export async function deviceNames(host: LinuxHost): Promise<DeviceNames> {
  const devices = await host.devices();
  const id = (name: string): string => {
    const [found, ...others] = host.devicesCalled(name, devices);
    if (found === undefined)
      throw unknown(
        host,
        name,
        devices.map((device) => device.id),
      );
    if (others.length === 0) return found.id;
    throw new UsageError(`'${printable(name)}' is the name of ${others.length + 1} devices`, {
      code: "AMBIGUOUS_DEVICE",
      remedy: `write one of: ${list([found, ...others].map((device) => device.id))}`,
    });
  };
  return {
    id,
    byId: (named = {}) => Object.fromEntries(Object.entries(named).map(([name, value]) => [id(name), value])),
  };
}

function unknown(host: LinuxHost, name: string, ids: readonly string[]): UsageError {
  const code = "UNKNOWN_DEVICE";
  const text = printable(name);
  if (host.isPresent(name)) {
    return new UsageError(`'${text}' is a device of this machine, but none that could be assigned`, {
      code,
      remedy:
        "it is a bridge, or has no IOMMU in front of it; see `dirtmap probe --host linux` for those that could be",
    });
  }
  const near = nearest(name, ids);
  const there = ids.length === 0 ? "there are none" : `there are: ${list(ids)}`;
  return new UsageError(`this machine has no device '${text}' that is or could be assigned`, {
    code,
    remedy: near === undefined ? there : `did you mean '${near}'?`,
  });
}

function list(ids: readonly string[]): string {
  const shown = ids.slice(0, LISTED).join(", ");
  const more = ids.length - LISTED;
  return more > 0 ? `${shown} and ${more} more, see \`dirtmap probe --host linux\`` : shown;
}

/** What may be shown on a terminal. */
function printable(name: string): string {
  return name.replace(/[^\x20-\x7e]/g, "?").slice(0, 200);
}
