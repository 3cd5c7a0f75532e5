import { UsageError } from "../../errors.js";
import type { MonitorPlace } from "../../qemu/qmp/monitor.js";
import type { GuestOptions } from "./options/qemu.js";

/**
 * Where the monitor of the QEMU is that the operator named; undefined where none was.
 * @throws UsageError `BAD_OPTION`
 */
export function guestPlace({ qmp, libvirt, connect }: GuestOptions): MonitorPlace | undefined {
  return placeOf({ qmp, libvirt }, ["--qmp", "--libvirt"], connect);
}

/** The same of `--qmp-to` and `--libvirt-to`. */
export function destinationPlace(input: {
  readonly qmpTo?: string;
  readonly libvirtTo?: string;
  readonly connect?: string;
}): MonitorPlace | undefined {
  return placeOf({ qmp: input.qmpTo, libvirt: input.libvirtTo }, ["--qmp-to", "--libvirt-to"], input.connect);
}

/** The options of a process that is to reach the same QEMU. */
export function placeArguments(place: MonitorPlace): string[] {
  if ("qmp" in place) return ["--qmp", place.qmp];
  return ["--libvirt", place.libvirt, ...(place.connect === undefined ? [] : ["--connect", place.connect])];
}

function placeOf(
  { qmp, libvirt }: { readonly qmp?: string | undefined; readonly libvirt?: string | undefined },
  [socket, domain]: readonly [string, string],
  connect: string | undefined,
): MonitorPlace | undefined {
  if (qmp !== undefined && libvirt !== undefined) {
    throw new UsageError(`${socket} and ${domain} are two ways to one QEMU`, {
      code: "BAD_OPTION",
      remedy: `give ${domain} for a guest that libvirt has started, else ${socket}`,
    });
  }
  if (qmp !== undefined) return { qmp };
  return libvirt === undefined ? undefined : { libvirt, connect };
}
