import { open, stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { UsageError } from "../../errors.js";

/** The file is looked at this often. */
const EVERY_MS = 250;
/** Bytes that are read at a time. */
const CHUNK = 64 * 1024;
/** Bytes of a line; more of it is dropped. */
const MAX_LINE = 16 * 1024;

/**
 * Tells the lines that a file gets from now on, until the signal is aborted; then what there is to the end. A file that is
 * replaced or cut short (a log that was rotated) is read anew from its beginning.
 * @throws UsageError `NO_SUCH_FILE` for a file that is not there, or that is none
 */
export async function followFile(path: string, onLine: (line: string) => void, signal: AbortSignal): Promise<void> {
  let { ino, size: at } = await regularFile(path);
  let rest = "";
  const take = (text: string) => {
    const lines = (rest + text).split("\n");
    rest = (lines.pop() ?? "").slice(0, MAX_LINE);
    for (const line of lines) onLine(line.slice(0, MAX_LINE));
  };
  const readOn = async () => {
    const now = await stat(path).catch(() => null);
    if (now === null) return;
    if (now.ino !== ino || now.size < at) [ino, at, rest] = [now.ino, 0, ""];
    if (now.size === at) return;
    await using file = await open(path, "r");
    const buffer = Buffer.alloc(CHUNK);
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, CHUNK, at);
      if (bytesRead === 0) return;
      at += bytesRead;
      take(buffer.toString("utf8", 0, bytesRead));
    }
  };
  while (!signal.aborted) {
    await readOn();
    await sleep(EVERY_MS, undefined, { signal }).catch(() => {});
  }
  await readOn();
  if (rest !== "") onLine(rest);
}

async function regularFile(path: string): Promise<{ ino: number; size: number }> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => error.code ?? error.message);
  if (typeof found !== "string" && found.isFile()) return found;
  throw new UsageError(`${path} can't be followed: ${typeof found === "string" ? found : "it is no file"}`, {
    code: "NO_SUCH_FILE",
    remedy: "give the file that QEMU, or libvirt, writes; docs/watching.md says which",
  });
}
