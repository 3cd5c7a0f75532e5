import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

/** After which something counts as never said: only a hang takes that long, on however busy a computer. */
const PATIENCE_MS = 120_000;

/** A process that prints lines of JSON, and may be killed or stopped. Disposing kills it, and waits for its end. */
export class Child implements AsyncDisposable {
  readonly process: ChildProcess;
  /** With which it ended; null: by a signal. */
  readonly ended: Promise<number | null>;
  errors = "";
  readonly #lines: Record<string, unknown>[] = [];
  /** Those who wait for what it says next, or for its end. */
  readonly #waiting = new Set<() => void>();
  #isOver = false;

  /** @param args of Node: the program, and its arguments */
  constructor(...args: string[]) {
    const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "pipe"] });
    this.process = child;
    this.ended = once(child, "close").then(([code]) => {
      this.#isOver = true;
      this.#wake();
      return code as number | null;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.errors += text;
      this.#wake();
    });
    createInterface({ input: child.stdout }).on("line", (line) => {
      this.#lines.push(JSON.parse(line));
      this.#wake();
    });
  }

  /** The first line that has this field, or has it with this value; waited for. */
  async said(field: string, value?: unknown): Promise<Record<string, unknown>> {
    return await this.#until(`${field} ${value ?? ""}`, () => this.#line(field, value));
  }

  #line(field: string, value?: unknown): Record<string, unknown> | undefined {
    return this.#lines.find((line) => field in line && (value === undefined || line[field] === value));
  }

  /** Whether it has printed a line that has this field, or has it with this value. */
  has(field: string, value?: unknown): boolean {
    return this.#line(field, value) !== undefined;
  }

  /** Waits until standard error has this. */
  async complained(what: RegExp): Promise<RegExpMatchArray> {
    return await this.#until(String(what), () => this.errors.match(what) ?? undefined);
  }

  kill(signal: NodeJS.Signals): void {
    this.process.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill("SIGKILL");
    await this.ended;
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
  }

  /** One that has ended says nothing more: that is an error at once. */
  async #until<T>(what: string, look: () => T | undefined): Promise<T> {
    const limit = AbortSignal.timeout(PATIENCE_MS);
    for (;;) {
      const isOver = this.#isOver || limit.aborted;
      const found = look();
      if (found !== undefined) return found;
      if (isOver) throw new Error(`it never said ${what}; standard error: ${this.errors}`);
      await new Promise<void>((resolve) => {
        const wake = () => {
          this.#waiting.delete(wake);
          limit.removeEventListener("abort", wake);
          resolve();
        };
        this.#waiting.add(wake);
        limit.addEventListener("abort", wake);
      });
    }
  }
}
