import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { findKernel } from "../../tools/vm/kernel-image.js";
import { foundOrMissing, MissingError } from "../../tools/vm/missing.js";
import { findQemu, type Qemu } from "../../tools/vm/qemu.js";
import { atExit } from "../support/at-exit.js";

/*
 * A small guest whose shell the host talks to, for tests of devices that it drives with its own drivers.
 */

const BUSYBOX = ["/bin/busybox", "/usr/bin/busybox"];

/** From QEMU's start to the guest's shell: some ten times what it takes on an idle machine. */
const BOOT_LIMIT_MS = 120_000;
const COMMAND_LIMIT_MS = 120_000;
const QMP_LIMIT_MS = 20_000;

/** The guest's memory. */
export const GUEST_MEMORY_BYTES = 512 * 2 ** 20;

/** What a guest boots from. */
export interface ShellImage {
  readonly qemu: Qemu;
  readonly kernel: string;
  readonly initramfs: string;
  /** Default: 2. */
  readonly vcpus?: number | undefined;
}

/** What a guest with vfio-user devices boots from, but for its archive; the error where something is missing. */
export function findShellImage(root: string): Omit<ShellImage, "initramfs"> | MissingError {
  return foundOrMissing(() => ({ qemu: findQemu({ needs: [{ device: "vfio-user-pci" }] }), kernel: findKernel(root) }));
}

/** Where the C programs of a guest with disks lie. */
const DISK_PROGRAMS = "test/interop/guest";

/**
 * Writes the archive that the guest boots from: busybox, the guest's init, and C programs, compiled here.
 * @param root the project's folder
 * @param work an empty folder
 * @param programs the folder of the C programs, in the project's
 * @throws MissingError without busybox, cpio, or a C compiler
 */
export function makeShellInitramfs(root: string, work: string, programs = DISK_PROGRAMS): string {
  const busybox = BUSYBOX.find((path) => existsSync(path));
  if (busybox === undefined) throw new MissingError("no busybox", "install the package busybox-static");
  const sources = join(root, programs);
  const tree = join(work, "tree");
  for (const folder of ["bin", "proc", "sys", "dev", "tmp"]) mkdirSync(join(tree, folder), { recursive: true });
  symlinkSync(busybox, join(tree, "bin/busybox"));
  symlinkSync(join(root, "test/interop/guest/init"), join(tree, "init"));
  for (const source of readdirSync(sources).filter((name) => name.endsWith(".c"))) {
    const program = join(tree, "bin", source.slice(0, -2));
    const options = ["-O2", "-Wall", "-Werror", "-static", "-o", program, join(sources, source)];
    const compiled = spawnSync("cc", options, { encoding: "utf8" });
    if (compiled.error) throw new MissingError("no C compiler", "install the packages gcc and libc6-dev");
    if (compiled.status !== 0) throw new Error(`cc failed: ${compiled.stderr}`);
  }
  const archive = join(work, "initramfs.cpio");
  const output = openSync(archive, "w");
  const packed = spawnSync("sh", ["-c", "find . | cpio -o -L -H newc --quiet"], {
    cwd: tree,
    stdio: ["ignore", output, "pipe"],
    encoding: "utf8",
  });
  closeSync(output);
  if (/cpio: .*not found/.test(packed.stderr)) throw new MissingError("no cpio", "install the package cpio");
  if (packed.status !== 0) throw new Error(`cpio failed: ${packed.stderr}`);
  return archive;
}

/** A running guest. Disposing kills it. */
export class ShellGuest implements AsyncDisposable {
  /** What QEMU itself had to say. */
  qemuErrors = "";
  readonly #child: ChildProcess;
  readonly #console: string;
  readonly #qmpPath: string;
  readonly #outlived: () => void;
  readonly #closed: Promise<unknown>;
  #text = "";
  #changed: () => void = () => {};
  #commands = 0;

  /** @param folder of this guest alone, for its sockets and its console's log */
  private constructor({ qemu, kernel, initramfs, vcpus = 2 }: ShellImage, folder: string, devices: readonly string[]) {
    this.#console = join(folder, "console.log");
    this.#qmpPath = join(folder, "qmp");
    this.#child = spawn(
      qemu.program,
      [
        ...qemu.prefix,
        ...["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", String(vcpus)],
        // Other processes reach the guest's memory only if it is a file that can be handed to them.
        ...["-object", `memory-backend-memfd,id=mem,size=${GUEST_MEMORY_BYTES},share=on`],
        ...["-M", "q35,memory-backend=mem", "-m", `${GUEST_MEMORY_BYTES / 2 ** 20}M`],
        ...["-nodefaults", "-no-reboot", "-display", "none"],
        ...["-kernel", kernel, "-initrd", initramfs],
        // With a time limit for I/O: a disk that is gone is to be found out about soon.
        ...["-append", "console=ttyS0 panic=-1 tsc=reliable nvme_core.io_timeout=5 nvme_core.admin_timeout=5"],
        ...["-serial", `file:${this.#console}`],
        ...["-qmp", `unix:${this.#qmpPath},server=on,wait=off`],
        ...["-device", "virtio-serial-pci", "-chardev", "stdio,id=shell,signal=off"],
        ...["-device", "virtserialport,chardev=shell"],
        ...devices,
      ],
      { env: qemu.env, stdio: ["pipe", "pipe", "pipe"] },
    );
    this.#closed = once(this.#child, "close");
    this.#closed.catch(() => undefined);
    this.#outlived = atExit(() => this.#child.kill("SIGKILL"));
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.#text += text;
      this.#changed();
    });
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.qemuErrors += text;
    });
    this.#child.on("close", () => this.#changed());
    this.#child.stdin?.on("error", () => undefined);
  }

  /** Boots; returns when the guest's shell answers. @param devices QEMU's options for devices besides its shell's */
  static async boot(image: ShellImage, folder: string, devices: readonly string[]): Promise<ShellGuest> {
    mkdirSync(folder, { recursive: true });
    const guest = new ShellGuest(image, folder, devices);
    try {
      await guest.run("true", BOOT_LIMIT_MS);
      return guest;
    } catch (error) {
      await guest[Symbol.asyncDispose]();
      throw new Error(`the guest did not boot:\n${guest.qemuErrors}\n${guest.kernelLog.slice(-2000)}`, {
        cause: error,
      });
    }
  }

  /** Starts a QEMU that waits for a guest from another: the shell answers once that runs here. Its devices are the other's. */
  static incoming(image: ShellImage, folder: string, devices: readonly string[]): ShellGuest {
    mkdirSync(folder, { recursive: true });
    return new ShellGuest(image, folder, [...devices, "-S", "-incoming", "defer"]);
  }

  /** A signal to QEMU. */
  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Resolves when QEMU has ended. */
  async ended(): Promise<void> {
    await this.#closed;
  }

  /** True until QEMU has ended. */
  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get kernelLog(): string {
    return existsSync(this.#console) ? readFileSync(this.#console, "utf8") : "";
  }

  /** Runs a command in the guest's shell; returns what it printed. @throws Error where it fails, or takes too long */
  async run(command: string, limitMs = COMMAND_LIMIT_MS): Promise<string> {
    const mark = `-- ${++this.#commands}:`;
    this.#text = "";
    // In a subshell: its input is not the shell's, and what it changes is forgotten.
    this.#child.stdin?.write(`( ${command}\n) </dev/null; echo "${mark}$?"\n`);
    const until = performance.now() + limitMs;
    for (;;) {
      const end = new RegExp(`^${mark}(\\d+)\r?\n`, "m").exec(this.#text);
      if (end !== null) {
        const output = this.#text.slice(0, end.index);
        if (end[1] === "0") return output;
        throw new Error(`'${command}' ended with ${end[1]} in the guest: ${output}`);
      }
      if (!this.isRunning) throw new Error(`QEMU has ended: ${this.qemuErrors}`);
      const left = until - performance.now();
      if (left <= 0) throw new Error(`'${command}' did not end within ${limitMs} ms: ${this.#text}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** A command of QEMU's monitor (QMP); returns its answer. */
  async monitor(execute: string, args: object = {}): Promise<unknown> {
    const socket = connect(this.#qmpPath);
    try {
      await once(socket, "connect");
      const lines = linesOf(socket);
      socket.write(`${JSON.stringify({ execute: "qmp_capabilities" })}\n`);
      socket.write(`${JSON.stringify({ execute, arguments: args, id: 1 })}\n`);
      const signal = AbortSignal.timeout(QMP_LIMIT_MS);
      signal.addEventListener("abort", () => socket.destroy());
      for await (const line of lines) {
        const message = JSON.parse(line) as { id?: number; return?: unknown; error?: { desc: string } };
        if (message.id !== 1) continue;
        if (message.error !== undefined) throw new Error(`${execute}: ${message.error.desc}`);
        return message.return;
      }
      throw new Error(`${execute}: QEMU did not answer`);
    } finally {
      socket.destroy();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#closed.catch(() => undefined);
    this.#outlived();
  }
}

async function* linesOf(socket: Socket): AsyncGenerator<string> {
  let text = "";
  for await (const part of socket.setEncoding("utf8")) {
    text += part as string;
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    yield* lines.filter((line) => line.trim() !== "");
  }
}
