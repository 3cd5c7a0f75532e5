import { DirtmapError } from "../errors.js";
import { EXIT_CODES, exitCodeOfError } from "./exit-codes.js";

/*
 * What every command does the same: results on standard output, everything else on standard error, the exit code, and
 * Ctrl-C.
 */

/** Raised when what `--json` prints changes so that a reader of the old could misread it. */
export const SCHEMA_VERSION = 1;

/** After a command is done, how long what it left running may keep the process. */
const LINGER_MS = 3000;

/** Writes a result: text, or with `--json` one JSON value. */
export function printResult(value: object, { json, text }: { json: boolean; text: () => string }): void {
  process.stdout.write(json ? `${JSON.stringify({ schemaVersion: SCHEMA_VERSION, ...value })}\n` : `${text()}\n`);
}

/** One line on standard error; with `--json` also the error as an object on standard output. */
export function printError(
  error: { code: string; message: string; remedy?: string | undefined },
  { json }: { json: boolean },
): void {
  const { code, message, remedy } = error;
  process.stderr.write(`dirtmap: ${remedy === undefined ? message : `${message}; ${remedy}`}\n`);
  if (json) printResult({ result: "failed", error: { code, message, remedy } }, { json, text: () => "" });
}

/** True where colours may be used on a stream: a terminal, and nobody said NO_COLOR (no-color.org). */
export function mayColor(stream: { isTTY?: boolean }): boolean {
  return stream.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== "dumb";
}

/** What an interrupt (Ctrl-C, SIGTERM, SIGHUP) does while something must not be cancelled. */
export interface Holding {
  /** Tells the user why nothing was cancelled, and what would end the wait. */
  first(): void;
  /** Tells the user what is lost; then the process ends. */
  forced(): void;
}

/** The interrupts of a command. */
export interface Interrupts {
  /** From now on the first interrupt cancels nothing, and the second forces. Disposing ends that. */
  hold(holding: Holding): Disposable;
}

/** Of a terminal that was closed, and of a pipe whose reader has gone: there is nobody left to tell. */
const NOBODY_READS = ["EPIPE", "EIO", "ENXIO"];

/**
 * Runs a command's work: with a signal that Ctrl-C (SIGINT), SIGTERM and SIGHUP abort, of which a second one forces; and
 * sets the exit code that the work returns, or that its error means.
 * @param onInterrupt tells the user what the first Ctrl-C did
 */
export async function runCommand(
  { json, onInterrupt }: { json: boolean; onInterrupt?: () => void },
  work: (signal: AbortSignal, interrupts: Interrupts) => Promise<number>,
): Promise<void> {
  const interrupted = new AbortController();
  let held: { readonly holding: Holding; warned: boolean } | undefined;
  const interrupts: Interrupts = {
    hold: (holding) => {
      const mine = { holding, warned: false };
      held = mine;
      return {
        [Symbol.dispose]: () => {
          if (held === mine) held = undefined;
        },
      };
    },
  };
  const interrupt = () => {
    if (held !== undefined && !held.warned) {
      held.warned = true;
      held.holding.first();
      return;
    }
    held?.holding.forced();
    if (held !== undefined || interrupted.signal.aborted) process.exit(EXIT_CODES.cancelled.code);
    interrupted.abort();
    if (onInterrupt === undefined) process.stderr.write("dirtmap: stopping; Ctrl-C once more forces\n");
    else onInterrupt();
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const name of signals) process.on(name, interrupt);
  // A reader that goes away (`| head`) is no failure of ours.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (!NOBODY_READS.includes(error.code ?? "")) throw error;
  });
  // What can't be told must not end what is told of: a source that waits for a decision has the machine.
  process.stderr.on("error", () => {});
  try {
    process.exitCode = await work(interrupted.signal, interrupts);
  } catch (error) {
    process.exitCode = exitCodeOfError(error);
    if (process.exitCode === EXIT_CODES.cancelled.code) process.stderr.write("dirtmap: cancelled\n");
    else if (error instanceof DirtmapError) printError(error, { json });
    // Anything else that escapes is a bug, and its stack is what helps to mend it.
    else printError({ code: "INTERNAL", message: (error as Error).stack ?? String(error) }, { json });
  } finally {
    for (const name of signals) process.off(name, interrupt);
    setTimeout(() => process.exit(), LINGER_MS).unref();
  }
}
