import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { DirtmapError } from "../../errors.js";

const PROGRAM = fileURLToPath(new URL("../../../../bin/dirtmap.js", import.meta.url));

/** Time for a process to become ready: Node's start, on a busy machine. */
const START_MS = 20_000;
/** Time for a process to end by itself once it was told to, and again until SIGKILL. */
const END_MS = 5_000;
/** The part of its standard error that is kept for a message. */
const KEPT_ERROR_BYTES = 4096;

/** A command of this program in a process of its own; disposing waits for its end, and sees to it. */
export interface OwnProcess<Ready> extends AsyncDisposable {
  readonly pid: number | undefined;
  readonly ready: Ready;
}

/** What is started, and how messages name it. */
export interface Start<Ready> {
  /** With `--json`: it prints a line for each event. */
  readonly args: readonly string[];
  /** The subject of a message: `the destination`. */
  readonly name: string;
  /** The code of an error. */
  readonly code: string;
  /** Returns what the caller waits for from an event; undefined for other events. */
  readonly ready: (event: Readonly<Record<string, unknown>>) => Ready | undefined;
  /** It ends when its standard input does, and so with this process, however this process ends. */
  readonly endsWithStdin?: boolean;
  readonly signal?: AbortSignal;
}

/**
 * Starts a command of this program, and waits until it is ready. It runs in a session of its own, so that Ctrl-C at the
 * terminal reaches this process alone, which then ends the other.
 * @throws DirtmapError with the given code if it does not become ready; the signal's reason
 */
export async function startOwnProcess<Ready>(start: Start<Ready>): Promise<OwnProcess<Ready>> {
  const { args, name, code, ready, endsWithStdin = false, signal } = start;
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["pipe", "pipe", "pipe"], detached: true });
  child.stdin.on("error", () => undefined);
  if (!endsWithStdin) child.stdin.end();
  const end = async (patienceMs?: number) => {
    child.stdin.end();
    await endChild(child, patienceMs);
  };
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors = (errors + text).slice(-KEPT_ERROR_BYTES);
  });
  const lines = createInterface({ input: child.stdout });
  const late = AbortSignal.timeout(START_MS);
  const over = signal === undefined ? late : AbortSignal.any([signal, late]);
  try {
    const failed = once(child, "exit").then(([status]) => {
      const why = errors.trim().split("\n").at(-1);
      throw new DirtmapError(`${name} ended with ${status} before it was ready: ${why}`, { code });
    });
    failed.catch(() => {});
    for (;;) {
      const [line] = (await Promise.race([once(lines, "line", { signal: over }), failed])) as [string];
      const found = ready(JSON.parse(line) as Readonly<Record<string, unknown>>);
      if (found !== undefined) return { pid: child.pid, ready: found, [Symbol.asyncDispose]: () => end() };
    }
  } catch (cause) {
    await end(endsWithStdin ? undefined : 0);
    signal?.throwIfAborted();
    if (cause instanceof DirtmapError) throw cause;
    throw new DirtmapError(`${name} was not ready within ${START_MS} ms`, { code, cause });
  }
}

/** Waits for a process's end; after a while asks for it, then forces it. */
async function endChild(child: ChildProcess, patienceMs = END_MS): Promise<void> {
  for (const [signal, ms] of [
    [null, patienceMs],
    ["SIGTERM", END_MS],
    ["SIGKILL", END_MS],
  ] as const) {
    if (child.exitCode !== null || child.signalCode !== null) return;
    if (signal !== null) child.kill(signal);
    await once(child, "exit", { signal: AbortSignal.timeout(ms) }).catch(() => undefined);
  }
}
