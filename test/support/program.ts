import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";

/** The file that `dirtmap` runs. */
export const PROGRAM = fileURLToPath(new URL("../../../bin/dirtmap.js", import.meta.url));

/** After which a run counts as a hang: emulated CPUs need seconds to start the program, busy ones too. */
const LIMIT_MS = 100_000;

/** How a run of the program ended, and all that it wrote. */
export interface Ran {
  /** null: a signal ended it, as the time limit does. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** How a program is run other than as the test itself. */
export interface RunOptions {
  /** Variables that are set besides the test's own. */
  readonly env?: NodeJS.ProcessEnv;
  readonly uid?: number;
  readonly gid?: number;
  readonly limitMs?: number;
}

/** Starts `dirtmap`; bounded, so that a hang is a failure. Invalid UTF-8 shows as U+FFFD. */
export function startDirtmap(
  args: readonly string[],
  { env = {}, limitMs = LIMIT_MS, ...as }: RunOptions = {},
): { readonly child: ChildProcessByStdio<null, Readable, Readable>; readonly ended: Promise<Ran> } {
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    ...as,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: limitMs,
    killSignal: "SIGKILL",
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const ended = once(child, "close").then(([code]) => ({ code: code as number | null, stdout, stderr }));
  return { child, ended };
}

/** Runs `dirtmap` to its end, as an operator would. */
export function dirtmap(args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  return startDirtmap(args, options).ended;
}
