import { readFileSync } from "node:fs";
import { KiB } from "../memory/address.js";

/** How much memory this process may have locked, and has. */
export interface LockedMemory {
  /** RLIMIT_MEMLOCK in bytes; Infinity for none. */
  readonly limit: number;
  /** In bytes: what VFIO's container locks counts here (VmLck), what iommufd pins is counted apart (VmPin). */
  readonly locked: number;
  readonly pinned: number;
}

/** What /proc/self tells of it; null where it tells nothing of the expected form. */
export function readLockedMemory(): LockedMemory | null {
  const limit = /^Max locked memory +(\d+|unlimited) /m.exec(readProc("limits"))?.[1];
  const status = readProc("status");
  const kilobytes = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]) * KiB;
  const [locked, pinned] = [kilobytes("VmLck"), kilobytes("VmPin")];
  if (limit === undefined || Number.isNaN(locked) || Number.isNaN(pinned)) return null;
  return { limit: limit === "unlimited" ? Number.POSITIVE_INFINITY : Number(limit), locked, pinned };
}

/**
 * What to do about ENOMEM where memory is handed to the kernel: it is pinned, and pinned memory is limited for who lacks
 * CAP_IPC_LOCK.
 * @param bytes that were to be pinned
 */
export function lockedMemoryRemedy(bytes: number, memory = readLockedMemory()): string {
  const kib = (value: number) => `${Math.ceil(value / KiB)} KiB`;
  const general = "raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK= in a systemd unit) or give the process CAP_IPC_LOCK";
  if (memory === null || memory.limit === Number.POSITIVE_INFINITY) {
    return `free memory on this machine: ${kib(bytes)} have to be pinned`;
  }
  const held = memory.locked + memory.pinned;
  return `RLIMIT_MEMLOCK is ${kib(memory.limit)}, of which ${kib(held)} are in use, and ${kib(bytes)} have to be pinned: ${general}`;
}

function readProc(name: string): string {
  try {
    return readFileSync(`/proc/self/${name}`, "utf8");
  } catch {
    return "";
  }
}
