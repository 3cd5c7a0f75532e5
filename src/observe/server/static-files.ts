import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/*
 * The page's files. They are few and small, and are read once: what is served is what was there at the start, and no
 * request names a path of the file system.
 */

const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
};

export interface StaticFile {
  readonly type: string;
  readonly body: Buffer;
}

/** The files of a folder and those below it, by the path that they are asked for with. */
export function readStaticFiles(folder: string): ReadonlyMap<string, StaticFile> {
  const files = new Map<string, StaticFile>();
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    const type = TYPES[/\.[a-z]+$/.exec(entry.name)?.[0] ?? ""];
    if (!entry.isFile() || type === undefined) continue;
    const path = join(entry.parentPath, entry.name);
    files.set(path.slice(folder.length).replaceAll("\\", "/"), { type, body: readFileSync(path) });
  }
  return files;
}
