import { readlinkSync } from "node:fs";
import type { Roots } from "../roots.js";
import { entries, readValue } from "../sysfs/files.js";

/** A process that has a file open. */
export interface FileUser {
  readonly pid: number;
  /** The program's name, as /proc/PID/comm has it. */
  readonly command: string;
}

/** Links that are looked at before giving up: a busy server has some hundred thousand descriptors. */
const MAX_LINKS = 500_000;

/**
 * The other processes that have one of these files open, as far as we may see: a process of another user shows its
 * descriptors to root alone.
 * @param paths of device nodes, as their users opened them
 */
export function findUsers(roots: Roots, paths: readonly string[]): FileUser[] {
  const users: FileUser[] = [];
  let links = 0;
  for (const pid of entries(roots.proc, /^[1-9]\d{0,9}$/)) {
    if (Number(pid) === process.pid) continue;
    const descriptors = `${roots.proc}/${pid}/fd`;
    for (const fd of entries(descriptors, /^\d{1,10}$/)) {
      if (++links > MAX_LINKS) return users;
      if (!paths.includes(target(`${descriptors}/${fd}`))) continue;
      users.push({ pid: Number(pid), command: readValue(`${roots.proc}/${pid}/comm`) ?? "" });
      break;
    }
  }
  return users.sort((a, b) => a.pid - b.pid);
}

function target(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return "";
  }
}

/** "by qemu-system-x86 (process 4711)"; what to say where nobody is seen. */
export function describeUsers(users: readonly FileUser[]): string {
  if (users.length === 0) return "by a process that this user can't see";
  return `by ${users.map(({ pid, command }) => `${command || "a program"} (process ${pid})`).join(" and ")}`;
}
