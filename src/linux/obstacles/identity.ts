import { accessSync, constants, statSync } from "node:fs";
import type { Roots } from "../roots.js";
import { readBytes } from "../sysfs/files.js";

/** Who this process is to the kernel, for sentences about permissions: "user 1000, groups 27 and 1000". */
export function whoAmI(): string {
  const user = process.geteuid?.() ?? -1;
  const groups = [...new Set([process.getegid?.() ?? -1, ...(process.getgroups?.() ?? [])])].sort((a, b) => a - b);
  return `user ${user}, ${groups.length === 1 ? "group" : "groups"} ${groups.join(", ")}`;
}

/** True where this process may open the file for reading and writing. */
export function mayOpen(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Whom a file is for: "mode 0600 of user 0, group 0"; null where it is gone. */
export function describeMode(path: string): string | null {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return null;
  return `mode 0${(stat.mode & 0o777).toString(8).padStart(3, "0")} of user ${stat.uid}, group ${stat.gid}`;
}

/** CAP_IPC_LOCK of include/uapi/linux/capability.h. */
const CAP_IPC_LOCK = 14n;

/** More than /proc/self/status and /proc/self/limits are. */
const MAX_PROC_FILE = 16_384;

/** What this process may lock in memory, in bytes (RLIMIT_MEMLOCK); Infinity for no limit, null where /proc doesn't say. */
export function lockableMemory(roots: Roots): number | null {
  const status = readBytes(`${roots.proc}/self/status`, MAX_PROC_FILE)?.toString("latin1") ?? "";
  const capabilities = /^CapEff:\s*([0-9a-f]{1,16})$/m.exec(status);
  if (capabilities !== null && (BigInt(`0x${capabilities[1]}`) >> CAP_IPC_LOCK) & 1n) return Number.POSITIVE_INFINITY;
  const limits = readBytes(`${roots.proc}/self/limits`, MAX_PROC_FILE)?.toString("latin1") ?? "";
  const soft = /^Max locked memory\s+(\d{1,20}|unlimited)\s/m.exec(limits);
  if (soft === null) return null;
  return soft[1] === "unlimited" ? Number.POSITIVE_INFINITY : Number(soft[1]);
}
