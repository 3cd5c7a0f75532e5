/*
 * Lines of QEMU's standard error that tell of a device that could not go where the migration wanted it. QEMU resets such a
 * device at the destination, and both sides say `completed` all the same.
 */

/** A device that QEMU says it has failed. */
export interface DeviceFailure {
  /** As QEMU names it: a PCI address, or an mdev's UUID. */
  readonly name: string;
  /** In QEMU's words. */
  readonly reason: string;
}

const FAILURES = [
  /^(\S{1,200}): (Failed setting device state to [A-Z0-9_]+\b.*)$/,
  /^(\S{1,200}): (Failed setting device in recover state\b.*)$/,
  /^(\S{1,200}): (Failed resetting device\b.*)$/,
  /^(\S{1,200}): (data_fd out of sync)$/,
];

/** What QEMU, and libvirt in its log, put before a message: a time, the program's name. */
const BEFORE = /^(?:\d{4}-\d\d-\d\dT[\d:.]+Z )?(?:qemu-[\w-]+|qemu-kvm|kvm): /;

/** Null for every other line. */
export function readLogLine(line: string): DeviceFailure | null {
  const text = line.trimEnd().replace(BEFORE, "");
  for (const pattern of FAILURES) {
    const match = pattern.exec(text);
    if (match !== null) return { name: match[1], reason: match[2] };
  }
  return null;
}
