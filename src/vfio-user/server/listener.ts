import { lstatSync, readFileSync, rmSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { UsageError } from "../../errors.js";
import { connectTo, isBound, listenAt } from "../../sys/unix-socket.js";
import { isErrno, UapiError } from "../../uapi/errno.js";
import { controlPath } from "../control-path.js";

/*
 * The sockets of a server in the file system: who may connect to them, and what is done about one that is there already.
 */

const WRITABLE_BY_ALL = 0o002;
const STICKY = 0o1000;

/** Characters of a process's command line that a message shows. */
const COMMAND_CHARS = 120;

/**
 * Listens at a path, for this user alone and those of `group`. A socket there that nobody listens at was left behind by a
 * server that was killed: it is removed.
 * @throws UsageError `BAD_SOCKET_PATH`, `SOCKET_IN_USE`, `UNSAFE_FOLDER`, `BAD_SOCKET_GROUP`
 */
export function listenAtFree(path: string, { group, log }: { group?: number; log: (line: string) => void }): number {
  checkFolder(path);
  const options = group === undefined ? {} : { group };
  try {
    return listenAt(path, options);
  } catch (error) {
    if (!isErrno(error, "EADDRINUSE")) throw unusable(path, error);
  }
  if (!isLeftBehind(path)) throw inUse(path);
  log(`${path} was left behind by a server that is gone: taken over`);
  rmSync(path, { force: true });
  try {
    return listenAt(path, options);
  } catch (error) {
    throw unusable(path, error);
  }
}

/**
 * The id of a group of /etc/group, or of a number.
 * @throws UsageError `BAD_SOCKET_GROUP`
 */
export function groupId(name: string): number {
  if (/^\d{1,9}$/.test(name)) return Number(name);
  const line = readFileSync("/etc/group", "utf8")
    .split("\n")
    .find((entry) => entry.startsWith(`${name}:`));
  const id = line?.split(":").at(2);
  if (id !== undefined && /^\d{1,9}$/.test(id)) return Number(id);
  throw new UsageError(`there is no group '${name}' in /etc/group`, {
    code: "BAD_SOCKET_GROUP",
    remedy: "give a group of /etc/group, or the number of one that is kept elsewhere (getent group NAME)",
  });
}

/** In a folder that all may write to, anyone could put a socket of their own in the place of ours. */
function checkFolder(path: string): void {
  const folder = dirname(path);
  const stat = statSync(folder, { throwIfNoEntry: false });
  if (stat === undefined || (stat.mode & WRITABLE_BY_ALL) === 0 || (stat.mode & STICKY) !== 0) return;
  throw new UsageError(`everyone may replace what lies in '${folder}': it is writable by all, and not sticky`, {
    code: "UNSAFE_FOLDER",
    remedy: `take that right away (chmod o-w '${folder}'), or name a path in another folder`,
  });
}

function isLeftBehind(path: string): boolean {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return false;
  try {
    return !isBound(path);
  } catch {
    // One that can't be looked at may be anyone's.
    return false;
  }
}

function inUse(path: string): UsageError {
  const code = "SOCKET_IN_USE";
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) {
    return new UsageError(`there is something at '${path}' already, which is no socket`, {
      code,
      remedy: "move it away, or name another path",
    });
  }
  // A device's own socket has room for one client, whose place is not to be taken: its server is asked by the other one.
  const pid = listenerOf(controlPath(path)) ?? listenerOf(path);
  return new UsageError(`a server listens at '${path}' already${pid === null ? "" : `: ${processName(pid)}`}`, {
    code,
    remedy: pid === null ? "stop it, or name another path" : `stop it (kill ${pid}), or name another path`,
  });
}

/** The process that listens at a path; null where it can't be seen. */
function listenerOf(path: string): number | null {
  try {
    using connection = connectTo(path);
    const { pid } = connection.peer;
    return pid > 0 ? pid : null;
  } catch {
    return null;
  }
}

/** A process by its number and command line, which it has made up itself: what can't be printed is left out. */
function processName(pid: number): string {
  let command = "";
  try {
    command = readFileSync(`/proc/${pid}/cmdline`, "utf8")
      .replaceAll("\0", " ")
      .replaceAll(/[^ -~]/g, "?")
      .trim();
  } catch {
    // It has ended, or it is another user's.
  }
  if (command.length > COMMAND_CHARS) command = `${command.slice(0, COMMAND_CHARS)}…`;
  return command === "" ? `process ${pid}` : `process ${pid} (${command})`;
}

function unusable(path: string, error: unknown): unknown {
  if (!(error instanceof UapiError)) return error;
  if (error.syscall === "chown") {
    return new UsageError(`${error.attempted}: ${error.code}`, {
      code: "BAD_SOCKET_GROUP",
      remedy: "name a group that you belong to",
      cause: error,
    });
  }
  const remedy = {
    ENOENT: "make its directory first",
    ENOTDIR: "name a path in a directory",
    EACCES: "name a directory that you may write to",
    EROFS: "name a directory that can be written to",
  }[error.code as string];
  return new UsageError(`no socket can be made at '${path}': ${error.code}`, {
    code: "BAD_SOCKET_PATH",
    remedy: remedy ?? "name another path",
    cause: error,
  });
}
