import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";

/*
 * Which process wrote something, so that a later one can tell whether it lives. A pid alone does not say: the system gives
 * it to another process once its own has ended.
 */

/** A process, as others recognize it: for files that outlive it. */
export interface ProcessIdentity {
  readonly pid: number;
  /** When it started, in the system's own terms: equal for the same process only. Empty if the system doesn't say. */
  readonly started: string;
  /** The boot that it ran in; empty if the system has no name for it. */
  readonly boot: string;
  readonly host: string;
}

/** Bounds on what {@link thisProcess} returns, for those who check a file. */
export const MAX_IDENTITY_TEXT = 128;

const limited = (text: string) => text.trim().slice(0, MAX_IDENTITY_TEXT);

let own: ProcessIdentity | undefined;

/** This process. */
export function thisProcess(): ProcessIdentity {
  own ??= { pid: process.pid, started: startOf(process.pid) ?? "", boot: bootId(), host: limited(hostname()) };
  return own;
}

/** Reads an identity from the JSON of a file; null for anything else. */
export function parseIdentity(json: string): ProcessIdentity | null {
  try {
    const found = JSON.parse(json) as Partial<ProcessIdentity> | null;
    const { pid, started, boot, host } = found ?? {};
    if (typeof pid !== "number" || !Number.isSafeInteger(pid) || pid < 1) return null;
    if (typeof started !== "string" || typeof boot !== "string" || typeof host !== "string") return null;
    return { pid, started, boot, host };
  } catch {
    return null;
  }
}

/**
 * Does the process live? Null if that can't be told from here: it ran on another computer, or the system doesn't say when
 * processes started (/proc is not mounted). One that has ended and was not yet waited for (a zombie) does not live: its
 * memory is gone.
 */
export function lives({ pid, started, boot, host }: ProcessIdentity): boolean | null {
  const here = thisProcess();
  if (started === "" || here.started === "") return null;
  if (boot !== here.boot) return host === here.host ? false : null;
  if (host !== here.host && boot === "") return null;
  return startOf(pid) === started;
}

/** Is there a process of this pid, whichever? True if that can't be told. */
export function isAlive(pid: number): boolean {
  return startOf(pid) !== null || thisProcess().started === "";
}

/** When the process started; null if there is none, or it has ended. */
function startOf(pid: number): string | null {
  if (process.platform !== "linux") return startByPs(pid);
  try {
    // proc_pid_stat(5). The second field is the program's name in parentheses, which may hold anything; the state is the
    // third field, and the start in clock ticks since boot the 22nd.
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return /[ZXx]/.test(fields[0]) ? null : fields[22 - 3];
  } catch {
    return null;
  }
}

/** macOS has no /proc. */
function startByPs(pid: number): string | null {
  const { status, stdout } = spawnSync("ps", ["-o", "stat=,lstart=", "-p", String(pid)], { encoding: "latin1" });
  const [, state, start] = /^\s*(\S+)\s+(.*\S)\s*$/.exec(stdout ?? "") ?? [];
  return status !== 0 || state === undefined || state.startsWith("Z") ? null : start;
}

function bootId(): string {
  try {
    return limited(readFileSync("/proc/sys/kernel/random/boot_id", "latin1"));
  } catch {
    return "";
  }
}
