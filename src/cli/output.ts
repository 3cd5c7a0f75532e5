import { DirtmapError } from "../errors.js";
import { safeJson, safeLines, safeStrings, safeText } from "../safe-text.js";
import { EXIT_CODES } from "./exit-codes.js";

/*
 * What every command does the same: results on standard output, everything else on standard error. Nothing else writes to either stream (test/surface/seams.test.ts), so that what comes from elsewhere is made safe
 * here, once, and a stream that takes no more is noticed here.
 */

/** Raised when what `--json` prints changes so that a reader of the old could misread it. */
export const SCHEMA_VERSION = 1;

/** Of a pipe whose reader has gone, and of a terminal that was closed: no failure of ours, and nobody is left to tell. */
const NOBODY_READS = ["EPIPE", "EIO", "ENXIO"];

/** Aborted when nobody reads standard output any longer (`| head`). */
export const readerGone = new AbortController();

/** Why standard output took no more; undefined while it does. */
let outputFailure: NodeJS.ErrnoException | undefined;

/** Standard output or standard error, for a view that draws with escape sequences of its own around text that is safe. */
class Output {
  readonly #stream: NodeJS.WriteStream;
  readonly #onFailure: (error: NodeJS.ErrnoException) => void;

  constructor(stream: NodeJS.WriteStream, onFailure: (error: NodeJS.ErrnoException) => void) {
    this.#stream = stream.on("error", onFailure);
    this.#onFailure = onFailure;
  }

  get isTTY(): boolean {
    return this.#stream.isTTY === true;
  }

  get columns(): number | undefined {
    return this.#stream.columns;
  }

  get rows(): number | undefined {
    return this.#stream.rows;
  }

  write(text: string): void {
    try {
      this.#stream.write(text);
    } catch (error) {
      // A file is written to at once, and throws.
      this.#onFailure(error as NodeJS.ErrnoException);
    }
  }

  on(event: "resize", listener: () => void): void {
    this.#stream.on(event, listener);
  }

  off(event: "resize", listener: () => void): void {
    this.#stream.off(event, listener);
  }
}

export const out = new Output(process.stdout, (error) => {
  if (NOBODY_READS.includes(error.code ?? "")) readerGone.abort();
  else if (outputFailure === undefined) {
    outputFailure = error;
    printError({ code: "CANNOT_WRITE", message: `can't write to standard output: ${error.message}` }, { json: false });
    // Whatever the command itself ends with: what it was to print is lost.
    process.on("exit", () => {
      process.exitCode = EXIT_CODES.failed.code;
    });
  }
});

/** What can't be told must not end what is told of: a source that waits for a decision has the machine. */
export const err = new Output(process.stderr, () => {});

/**
 * Writes a result: text, or with `--json` one JSON value.
 * @param text makes the text of a copy of the value in which all strings are safe
 */
export function printResult<Value extends object>(
  value: Value,
  { json, text }: { json: boolean; text: (safe: Value) => string },
): void {
  if (json) out.write(`${safeJson({ schemaVersion: SCHEMA_VERSION, ...value })}\n`);
  else printText(text(safeStrings(value)));
}

/** Writes a JSON value on standard error, on a line of its own: what happens before there is a result. */
export function noteEvent(event: { event: string } & Record<string, unknown>): void {
  err.write(`${safeJson({ schemaVersion: SCHEMA_VERSION, ...event })}\n`);
}

/** Tells of events as they happen: with `--json` as results, a line each, else as notes. */
export function tellEvent({
  json,
}: {
  json: boolean;
}): (event: { event: string } & Record<string, unknown>, text: string) => void {
  return (event, text) => {
    if (json) printResult(event, { json, text: () => text });
    else note(text);
  };
}

/** Writes text that Dirtmap made, to be used as it is: options, XML, JSON. */
export function printText(text: string): void {
  out.write(`${safeLines(text)}\n`);
}

/** Writes a line on standard error: progress, or what is worth knowing. */
export function note(text: string): void {
  err.write(`${safeText(text)}\n`);
}

/** A note among the results of a command that has no other notes: it says whose it is. */
export function warn(text: string): void {
  note(`dirtmap: ${text}`);
}

/** A line on standard error, and one for each further problem; with `--json` also an object on standard output. */
export function printError(
  error: {
    code: string;
    message: string;
    remedy?: string | undefined;
    further?: readonly string[] | undefined;
  },
  { json }: { json: boolean },
): void {
  const { code, message, remedy, further = [] } = error;
  warn(remedy === undefined ? message : `${message}; ${remedy}`);
  for (const problem of further) note(`  ${problem}`);
  if (json) {
    const more = further.length === 0 ? {} : { further };
    printResult({ result: "failed", error: { code, message, remedy, ...more } }, { json, text: () => "" });
  }
}

/** Tells of what a command, or what it left running, has thrown. */
export function printFailure(error: unknown, { json }: { json: boolean }): void {
  if (error instanceof DirtmapError) printError(error, { json });
  else if (isSystemError(error)) printError({ code: error.code, message: error.message }, { json });
  else {
    // Anything else that escapes is a bug, and its stack is what helps to mend it.
    const stack = (error instanceof Error ? error.stack : undefined) ?? String(error);
    err.write(`dirtmap: ${safeLines(stack)}\n`);
    if (json) printResult({ result: "failed", error: { code: "INTERNAL", message: stack } }, { json, text: () => "" });
  }
}

/** The system refused something: no room, no permission, too many open files. */
function isSystemError(error: unknown): error is NodeJS.ErrnoException & { code: string } {
  return error instanceof Error && "syscall" in error && "code" in error && typeof error.code === "string";
}

/** True where colours may be used on a stream: a terminal, and nobody said NO_COLOR (no-color.org). */
export function mayColor(stream: { isTTY?: boolean }): boolean {
  return stream.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== "dumb";
}
