import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { atExit } from "../support/at-exit.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));

const SERVER_LIMIT_MS = 30_000;

/** `dirtmap device`, as an operator starts it. */
export class DeviceProgram implements AsyncDisposable {
  output = "";
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  readonly #outlived: () => void;

  private constructor(model: string, socket: string, options: readonly string[]) {
    const args = ["device", model, "--socket", socket, ...options];
    this.#child = spawn(process.execPath, [join(root, "bin/dirtmap.js"), ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#closed = once(this.#child, "close");
    this.#outlived = atExit(() => this.#child.kill("SIGKILL"));
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.output += text;
      });
    }
  }

  static async start(model: string, socket: string, options: readonly string[] = []): Promise<DeviceProgram> {
    const server = new DeviceProgram(model, socket, options);
    const until = performance.now() + SERVER_LIMIT_MS;
    while (!/^serving /m.test(server.output)) {
      if (server.#child.exitCode !== null) throw new Error(`the server ended: ${server.output}`);
      if (performance.now() > until) throw new Error(`the server did not start: ${server.output}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return server;
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** True until it has ended. */
  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Ends as by an operator, or by a crash. */
  async end(signal: NodeJS.Signals): Promise<void> {
    this.#child.kill(signal);
    await this.#closed;
    this.#outlived();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.isRunning) await this.end("SIGKILL");
  }
}
