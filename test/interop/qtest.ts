import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface, type Interface } from "node:readline";
import type { Qemu } from "../../tools/vm/qemu.js";

const LIMIT_MS = 30_000;

/**
 * A QEMU without a guest: its machine is driven over the qtest protocol (QEMU's docs/devel/testing/qtest.rst), one command a
 * line, as a vCPU would: ports, device registers, memory.
 */
export class QtestMachine implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: Interface;
  readonly #closed: Promise<unknown>;
  #errors = "";
  readonly #kill = (): void => {
    this.#child.kill("SIGKILL");
  };

  constructor({ program, prefix, env }: Qemu, options: readonly string[]) {
    const fixed = ["-accel", "qtest", "-qtest", "stdio", "-display", "none", "-nodefaults"];
    this.#child = spawn(program, [...prefix, ...fixed, ...options], { env, stdio: "pipe" });
    this.#closed = once(this.#child, "close");
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#errors += text;
    });
    this.#child.stdin.on("error", () => undefined);
    this.#lines = createInterface({ input: this.#child.stdout });
    process.on("exit", this.#kill);
  }

  /** Sends a command, and returns what comes behind OK. @throws Error where it fails, or QEMU has ended */
  async command(...words: readonly (string | number)[]): Promise<string> {
    const text = words.map((word) => (typeof word === "number" ? `0x${word.toString(16)}` : word)).join(" ");
    this.#child.stdin.write(`${text}\n`);
    const late = AbortSignal.timeout(LIMIT_MS);
    for (;;) {
      const ended = this.#closed.then(() => {
        throw new Error(`QEMU has ended at '${text}': ${this.#errors}`);
      });
      ended.catch(() => {});
      const [line] = (await Promise.race([once(this.#lines, "line", { signal: late }), ended])) as [string];
      if (line.startsWith("OK")) return line.slice(3);
      // Interrupts are told of when they happen.
      if (!line.startsWith("IRQ ")) throw new Error(`QEMU answers '${text}' with '${line}'`);
    }
  }

  async readl(address: number): Promise<number> {
    return Number(await this.command("readl", address));
  }

  async writel(address: number, value: number): Promise<void> {
    await this.command("writel", address, value);
  }

  async read(address: number, bytes: number): Promise<Buffer> {
    return Buffer.from((await this.command("read", address, bytes)).slice(2), "hex");
  }

  async write(address: number, data: Uint8Array): Promise<void> {
    await this.command("write", address, data.byteLength, `0x${Buffer.from(data).toString("hex")}`);
  }

  /** Configuration space of a device on bus 0, by the ports that PCs have for it. */
  async configRead(slot: number, offset: number): Promise<number> {
    await this.command("outl", 0xcf8, (0x8000_0000 | (slot << 11) | offset) >>> 0);
    return Number(await this.command("inl", 0xcfc));
  }

  async configWrite(slot: number, offset: number, value: number): Promise<void> {
    await this.command("outl", 0xcf8, (0x8000_0000 | (slot << 11) | offset) >>> 0);
    await this.command("outl", 0xcfc, value);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#lines.close();
    this.#kill();
    await this.#closed;
    process.off("exit", this.#kill);
  }
}
