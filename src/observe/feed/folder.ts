import { lstatSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DirtmapError, UsageError } from "../../errors.js";
import { makeFolder } from "../../sys/output-file.js";
import { runIdSchema } from "./schema.js";

const SUFFIX = ".feed";
/** sun_path of <sys/un.h>, with its final zero; 104 on macOS. */
const MAX_PATH_BYTES = 104;

/** Where feeds are: `$XDG_RUNTIME_DIR/dirtmap`, or a folder of the user's own among the temporary files. */
export function defaultFeedFolder(): string {
  const runtime = process.env.XDG_RUNTIME_DIR;
  if (runtime !== undefined && runtime !== "") return join(runtime, "dirtmap");
  return join(tmpdir(), `dirtmap-${process.getuid?.() ?? "user"}`);
}

/**
 * Makes the folder where it is missing, and checks that nobody else could have put anything there: among the temporary
 * files another user may have made it first.
 * @throws DirtmapError `FEED_FOLDER`
 */
export function ownFeedFolder(folder: string): void {
  try {
    makeFolder(folder, { mode: 0o700 });
  } catch (cause) {
    throw new DirtmapError(`the folder of live feeds can't be made: ${(cause as Error).message}`, {
      code: "FEED_FOLDER",
      remedy: "set XDG_RUNTIME_DIR to a folder that may be written to",
      cause,
    });
  }
  const { mode, uid } = lstatSync(folder);
  const isFolder = (mode & 0o170000) === 0o040000;
  if (isFolder && uid === (process.getuid?.() ?? uid) && (mode & 0o077) === 0) return;
  throw new DirtmapError(`${folder} is not a folder of this user's alone`, {
    code: "FEED_FOLDER",
    remedy: `remove it, or \`chmod 700\` it, or set XDG_RUNTIME_DIR`,
  });
}

/** The socket of a run's feed. @throws UsageError `NO_SUCH_RUN` for what can't be an id; DirtmapError `FEED_FOLDER` */
export function feedSocket(folder: string, run: string): string {
  const { error } = runIdSchema.safeParse(run);
  if (error !== undefined) {
    throw new UsageError(`'${run}' is no run's id`, { code: "NO_SUCH_RUN", remedy: error.issues[0]?.message });
  }
  const path = join(folder, `${run}${SUFFIX}`);
  if (Buffer.byteLength(path) < MAX_PATH_BYTES) return path;
  throw new DirtmapError(`the path of a socket has fewer than ${MAX_PATH_BYTES} bytes, and ${path} has more`, {
    code: "FEED_FOLDER",
    remedy: "set XDG_RUNTIME_DIR to a shorter one",
  });
}

/** The run whose feed a file of the folder is; null: it is none. */
export function runOfFile(file: string): string | null {
  if (!file.endsWith(SUFFIX)) return null;
  const run = file.slice(0, -SUFFIX.length);
  return runIdSchema.safeParse(run).success ? run : null;
}
