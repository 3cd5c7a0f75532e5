import { closeSync, constants, existsSync, opendirSync, openSync, readlinkSync, readSync } from "node:fs";
import { basename } from "node:path";

/*
 * Reading sysfs and procfs: a file is one value, a link names another object, and everything may vanish between two
 * looks. So whatever can't be read, and whatever is not of the form that it should have, is null here, not an error.
 */

/** More than any value in sysfs has: a file is one page there (Documentation/filesystems/sysfs.rst). */
const MAX_VALUE = 4096;

/** Names and values that may be shown on a terminal: printable ASCII. */
const PRINTABLE = /^[\x20-\x7e]*$/;

/** Entries of a folder that are looked at; a machine has some thousands of devices at most. */
const MAX_ENTRIES = 65_536;

/**
 * The first `max` bytes of a file, or null where it can't be read. Never waits: a FIFO in its place reads as empty.
 */
export function readBytes(path: string, max: number): Buffer | null {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return null;
  }
  try {
    // Files of procfs and sysfs say a size that means nothing, and may give less than was asked for at a time.
    const chunks: Buffer[] = [];
    let left = max;
    while (left > 0) {
      const chunk = Buffer.allocUnsafe(Math.min(left, 65_536));
      const bytes = readSync(fd, chunk);
      if (bytes === 0) break;
      chunks.push(chunk.subarray(0, bytes));
      left -= bytes;
    }
    return Buffer.concat(chunks);
  } catch {
    return null;
  } finally {
    closeSync(fd);
  }
}

/** A value of sysfs: one line of printable text without blanks around it; null for anything else. */
export function readValue(path: string): string | null {
  const bytes = readBytes(path, MAX_VALUE + 1);
  if (bytes === null || bytes.length > MAX_VALUE) return null;
  const text = bytes.toString("latin1").trim();
  return PRINTABLE.test(text) ? text : null;
}

/** A whole number in a range, both ends inclusive, decimal or with `0x`; null for anything else. */
export function readNumber(path: string, { min, max }: { min: number; max: number }): number | null {
  const text = readValue(path);
  if (text === null || !/^(-?\d{1,16}|0x[0-9a-f]{1,13})$/i.test(text)) return null;
  const value = Number(text);
  return value >= min && value <= max ? value : null;
}

/** The last part of what a link names: a driver's name, a group's number. null for no link, or a name that is none. */
export function linkName(path: string): string | null {
  try {
    const name = basename(readlinkSync(path));
    return name !== "" && PRINTABLE.test(name) ? name : null;
  } catch {
    return null;
  }
}

/** The names in a folder that have this form, sorted; none where it can't be read. */
export function entries(folder: string, form: RegExp): string[] {
  const names: string[] = [];
  try {
    const opened = opendirSync(folder);
    try {
      for (let seen = 0; seen < MAX_ENTRIES; seen++) {
        const entry = opened.readSync();
        if (entry === null) break;
        if (form.test(entry.name)) names.push(entry.name);
      }
    } finally {
      opened.closeSync();
    }
  } catch {
    // A folder that vanished while it was read: what was seen of it is what there was.
  }
  return names.sort();
}

/** True where a path leads somewhere. */
export const exists = existsSync;
