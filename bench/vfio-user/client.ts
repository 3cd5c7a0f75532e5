import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { errnoName } from "../../src/uapi/errno.js";

/** A command that takes longer than this has not only a busy machine to blame. */
const LIMIT_MS = 60_000;

/** What a command of client.c was answered. */
export type Answer = { readonly us: number; readonly value: number } | { readonly refused: string };

/** bench/vfio-user/client.c, connected to a server. Disposing ends it. */
export class BenchClient implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  #text = "";
  #changed: () => void = () => {};

  private constructor(program: string, socket: string) {
    this.#child = spawn(program, [socket], { stdio: ["pipe", "pipe", "inherit"] });
    this.#closed = once(this.#child, "close");
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.#text += text;
      this.#changed();
    });
    this.#child.stdin?.on("error", () => undefined);
    this.#child.on("close", () => this.#changed());
  }

  static async connect(program: string, socket: string): Promise<BenchClient> {
    const client = new BenchClient(program, socket);
    await client.#line();
    return client;
  }

  /** Gives a command; see client.c. */
  async ask(command: string): Promise<Answer> {
    this.#child.stdin?.write(`${command}\n`);
    const [first, second] = (await this.#line()).split(" ");
    if (first === "error") return { refused: errnoName(Number(second)) };
    return { us: Number(first) / 1000, value: Number(second) };
  }

  /** The same of a command that has to succeed; returns microseconds. @param value what it must answer */
  async measure(command: string, value?: number): Promise<number> {
    const answer = await this.ask(command);
    if ("refused" in answer) throw new Error(`${command}: ${answer.refused}`);
    if (value !== undefined && answer.value !== value) {
      throw new Error(`${command} answered ${answer.value}, and should have answered ${value}`);
    }
    return answer.us;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin?.end();
    await this.#closed;
  }

  async #line(): Promise<string> {
    const until = performance.now() + LIMIT_MS;
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      const { exitCode, signalCode, spawnargs } = this.#child;
      if (exitCode !== null || signalCode !== null)
        throw new Error(`${spawnargs.join(" ")} ended: ${exitCode ?? signalCode}`);
      const left = until - performance.now();
      if (left <= 0) throw new Error(`${spawnargs.join(" ")} did not answer within ${LIMIT_MS} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}
