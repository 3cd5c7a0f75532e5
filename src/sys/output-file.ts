import { accessSync, constants, mkdirSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { explain, UsageError } from "../errors.js";
import { writeWholeFile } from "./whole-file.js";

/*
 * Folders and files that are made where a user, or the environment, says.
 */

/**
 * Makes a folder and those above it that are missing; nothing where it is there. Node's `recursive` is not used: where the
 * system answers ENOENT for a folder whose parent exists, as it does in /proc, Node makes the parent and tries again, for ever.
 * @param mode of each folder that is made
 * @throws NodeJS.ErrnoException the system's
 */
export function makeFolder(path: string, { mode = 0o777 }: { mode?: number } = {}): void {
  const missing: string[] = [];
  for (let at = path; !isFolder(at); at = dirname(at)) {
    missing.push(at);
    if (dirname(at) === at) break;
  }
  for (const folder of missing.reverse()) {
    try {
      mkdirSync(folder, { mode });
    } catch (error) {
      // Another process may have made it meanwhile.
      if ((error as NodeJS.ErrnoException).code !== "EEXIST" || !isFolder(folder)) throw error;
    }
  }
}

/** Makes a folder, unless it is there. @throws UsageError `CANNOT_WRITE` where it can't be made, or not be written to */
export function checkWritable(folder: string): void {
  try {
    makeFolder(folder);
    accessSync(folder, constants.W_OK);
  } catch (cause) {
    throw cannotWrite(folder, cause);
  }
}

/**
 * Writes a file, whole or not at all, and makes its folder.
 * @returns the path
 * @throws UsageError `CANNOT_WRITE`
 */
export function writeOutput(path: string, text: string): string {
  try {
    makeFolder(dirname(path));
    writeWholeFile(path, text);
    return path;
  } catch (cause) {
    throw cannotWrite(path, cause);
  }
}

/** What is said where a file, or a folder, can't be written to. */
export function cannotWrite(
  path: string,
  cause: unknown,
  remedy = "give a place that may be written to, and has room",
): UsageError {
  return new UsageError(`can't write to ${path}: ${explain(cause)}`, { code: "CANNOT_WRITE", remedy, cause });
}

/** What would work where a temporary file can't be made. */
export const ELSEWHERE_TEMPORARY = "set TMPDIR to a folder that may be written to, and has room";

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}
