import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MissingError } from "../../tools/vm/missing.js";
import { findQemu } from "../../tools/vm/qemu.js";
import { ROOT } from "./blocks.js";
import { type Ports, SERVICES, substituted } from "./declared.js";

/** Until a service says that it is ready, and until it has ended; on a busy machine. */
const SERVICE_MS = 60_000;
/** Until a command is over. */
const COMMAND_MS = 120_000;

/** A reader's terminal: a folder of its own, `dirtmap` and `npx dirtmap` on the path, and nothing of this user's. */
export class Session implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-docs-"));
  /** Why QEMU's commands are not run here; undefined: they are. */
  readonly noQemu: string | undefined;
  readonly #ports: Ports;
  readonly #outputs = new Map<string, string>();
  readonly #services: { readonly command: string; readonly process: ChildProcess }[] = [];

  private constructor(ports: Ports) {
    this.#ports = ports;
    const bin = join(this.folder, ".bin");
    mkdirSync(bin);
    program(join(bin, "dirtmap"), `exec "${process.execPath}" "${join(ROOT, "bin/dirtmap.js")}" "$@"`);
    program(join(bin, "npx"), 'exec "$@"');
    cpSync(join(ROOT, "docs/figures"), join(this.folder, "docs/figures"), { recursive: true });
    this.noQemu = this.#putQemu(join(bin, "qemu-system-x86_64"));
  }

  static async open(): Promise<Session> {
    return new Session({ migration: await freePort(), dashboard: await freePort() });
  }

  /**
   * Runs a command as it is written, but for what stands in for a reader's own names; one that was run before has the
   * output that it had then. A service stays until {@link stop}.
   */
  async run(command: string): Promise<string> {
    const service = SERVICES.find((each) => each.command.test(command));
    if (service === undefined) {
      const output = this.#outputs.get(command) ?? (await this.#runToEnd(substituted(command, this.#ports)));
      this.#outputs.set(command, output);
      return output;
    }
    await this.#start(substituted(command, this.#ports), service.ready);
    return "";
  }

  /** Stops the services, which must end well. */
  async stop(): Promise<void> {
    for (const { command, process: child } of this.#services.splice(0).reverse()) {
      const ended = once(child, "close", { signal: AbortSignal.timeout(SERVICE_MS) });
      child.kill("SIGINT");
      const [code] = await ended;
      if (code !== 0) throw new Error(`\`${command}\` ended with ${code}`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { process: child } of this.#services) child.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #start(command: string, ready: RegExp): Promise<void> {
    const child = this.#spawn(`exec ${command}`);
    this.#services.push({ command, process: child });
    let stderr = "";
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`\`${command}\` is not ready: ${stderr}`)), SERVICE_MS);
      child.stderr?.on("data", (text) => {
        stderr += text;
        if (new RegExp(ready.source, "m").test(stderr)) resolve();
      });
      child.once("close", (code) => reject(new Error(`\`${command}\` ended with ${code}: ${stderr}`)));
      child.once("close", () => clearTimeout(late));
    });
  }

  async #runToEnd(command: string): Promise<string> {
    const child = this.#spawn(command);
    let stdout = "";
    let stderr = "";
    child.stdout?.on("data", (text) => {
      stdout += text;
    });
    child.stderr?.on("data", (text) => {
      stderr += text;
    });
    const late = setTimeout(() => child.kill("SIGKILL"), COMMAND_MS);
    const [code] = await once(child, "close");
    clearTimeout(late);
    if (code !== 0) throw new Error(`\`${command}\` ended with ${code}: ${stderr}${stdout}`);
    return stdout;
  }

  #spawn(command: string): ChildProcess {
    const child = spawn("bash", ["-c", `set -o pipefail; ${command}`], {
      cwd: this.folder,
      env: {
        ...process.env,
        PATH: `${join(this.folder, ".bin")}:${process.env.PATH}`,
        HOME: this.folder,
        XDG_DATA_HOME: join(this.folder, ".data"),
        XDG_STATE_HOME: join(this.folder, ".state"),
        XDG_RUNTIME_DIR: this.folder,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    child.stdout?.setEncoding("utf8");
    child.stderr?.setEncoding("utf8");
    return child;
  }

  /** QEMU without a guest: it takes all options, realizes the devices, and quits. */
  #putQemu(path: string): string | undefined {
    try {
      const qemu = findQemu({ needs: [{ device: "vfio-user-pci" }] });
      const words = [qemu.program, ...qemu.prefix].map((word) => `"${word}"`).join(" ");
      const modules = qemu.env.QEMU_MODULE_DIR;
      program(
        path,
        `${modules === undefined ? "" : `export QEMU_MODULE_DIR="${modules}"\n`}echo quit | ` +
          `${words} "$@" -accel tcg -nodefaults -display none -S -monitor stdio`,
      );
      return undefined;
    } catch (error) {
      if (error instanceof MissingError) return error.message;
      throw error;
    }
  }
}

function program(path: string, script: string): void {
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("a server without a port");
  return address.port;
}
