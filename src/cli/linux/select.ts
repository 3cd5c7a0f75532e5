import { UsageError } from "../../errors.js";
import type { LinuxDevice } from "../../linux/sysfs/device.js";
import { suggest } from "../nearest.js";

/** A PCI address as lspci prints it, without its domain. */
const SHORT_PCI_ADDRESS = /^[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/i;

/** A device's id as sysfs has it, of how an operator wrote it: lspci leaves out the domain 0000, and case is free. */
export function deviceId(text: string): string {
  return SHORT_PCI_ADDRESS.test(text) ? `0000:${text.toLowerCase()}` : text;
}

/** The keys of `--tracker DEV=…` and the like, as ids. */
export function byDeviceId<T>(option: Readonly<Record<string, T>> = {}): Record<string, T> {
  return Object.fromEntries(Object.entries(option).map(([text, value]) => [deviceId(text), value]));
}

/** @throws UsageError `UNKNOWN_DEVICE` where one of these is none of this machine's */
export function checkKnown(ids: readonly string[], devices: readonly LinuxDevice[]): void {
  const known = devices.map(({ id }) => id);
  const unknown = ids.find((id) => !known.includes(id));
  if (unknown === undefined) return;
  throw new UsageError(`this machine has no device '${unknown}' that is or could be assigned`, {
    code: "UNKNOWN_DEVICE",
    remedy: suggest(unknown, known),
  });
}
