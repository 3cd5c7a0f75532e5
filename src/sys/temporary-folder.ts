import { lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cannotWrite, ELSEWHERE_TEMPORARY } from "./output-file.js";
import { lives, type ProcessIdentity, parseIdentity, thisProcess } from "./process-identity.js";
import { writeWholeFile } from "./whole-file.js";

/*
 * Folders of this process's own among the temporary files: for disks that it makes up, and for sockets. Each names the
 * process that made it in a file of its own, so that a later one can remove what a killed process left behind.
 */

const PREFIX = "dirtmap-";
const OWNER = ".owner";
/** How long a folder without an owner is left alone: it may be about to get one. */
const ORPHAN_MS = 3_600_000;

/** What temporary folders are for; it is in their names. */
export const TEMPORARY_PURPOSES = ["disks", "disk", "devices", "qemu"] as const;

/** A folder that is removed, with what is in it, when it is disposed. */
export interface TemporaryFolder extends Disposable {
  readonly path: string;
}

/** Makes a folder that only this user can read. @throws UsageError `CANNOT_WRITE` */
export function temporaryFolder(purpose: (typeof TEMPORARY_PURPOSES)[number]): TemporaryFolder {
  let path: string | undefined;
  const remove = () => {
    if (path !== undefined) rmSync(path, { recursive: true, force: true });
  };
  try {
    path = mkdtempSync(join(tmpdir(), `${PREFIX}${purpose}-`));
    writeWholeFile(join(path, OWNER), JSON.stringify(thisProcess()), { mode: 0o600 });
  } catch (cause) {
    remove();
    throw cannotWrite(tmpdir(), cause, ELSEWHERE_TEMPORARY);
  }
  return { path, [Symbol.dispose]: remove };
}

/**
 * Removes the folders of this user's processes that have ended. Files that another process still has open keep their
 * contents: they lose their name alone. Returns what was removed.
 */
export function removeAbandonedFolders(now = Date.now()): string[] {
  const ours = new RegExp(`^${PREFIX}(${TEMPORARY_PURPOSES.join("|")})-[A-Za-z0-9]{6}$`);
  const abandoned = readdirSync(tmpdir())
    .filter((name) => ours.test(name))
    .map((name) => join(tmpdir(), name))
    .filter((path) => isAbandoned(path, now));
  for (const path of abandoned) rmSync(path, { recursive: true, force: true });
  return abandoned;
}

function isAbandoned(path: string, now: number): boolean {
  const folder = lstatSync(path, { throwIfNoEntry: false });
  // Anybody may put anything among the temporary files.
  if (!folder?.isDirectory() || folder.uid !== process.getuid?.()) return false;
  const owner = ownerOf(path);
  return owner === null ? now - folder.mtimeMs > ORPHAN_MS : lives(owner) === false;
}

function ownerOf(path: string): ProcessIdentity | null {
  try {
    return parseIdentity(readFileSync(join(path, OWNER), "utf8"));
  } catch {
    return null;
  }
}
