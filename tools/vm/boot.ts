import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { GuestImage } from "./image.js";
import { complaintsIn } from "./kernel-log.js";
import { MACHINE_KINDS, type MachineName } from "./machines.js";

/** A guest, and what it is to do. */
export interface GuestRun {
  readonly machine: MachineName;
  readonly image: GuestImage;
  /** A program in the guest, and its arguments; it runs in the project's folder. */
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** A folder that is not there yet, in one that is: the guest sees it as /share. */
  readonly share: string;
  /** After which the command is killed, in milliseconds; the guest itself gets a minute more to boot and to end. */
  readonly timeoutMs: number;
  /** Takes what the command prints. */
  readonly output: (text: string) => void;
  readonly signal?: AbortSignal;
}

/** How a guest ended. */
export interface GuestResult {
  /** The command's exit status; undefined where the guest ended before the command did. */
  readonly status: number | undefined;
  /** The command, or the guest, was killed. */
  readonly timedOut: boolean;
  /** All that the kernel printed. */
  readonly kernelLog: string;
  /** The lines of it that a healthy run doesn't have. */
  readonly complaints: readonly string[];
  /** What QEMU itself had to say. */
  readonly qemuErrors: string;
  readonly ms: number;
}

/** For booting and ending, beside what the command may take: some ten times what it takes on an idle machine. */
const BOOT_AND_END_MS = 60_000;
/** Of a command that `timeout -s KILL` has killed. */
const KILLED_STATUS = 128 + 9;

/** A word as the shell reads it back unchanged. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

/** A value as QEMU's options take it: a comma would begin the next one. */
function optionValue(text: string): string {
  return text.replaceAll(",", ",,");
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw error;
  }
}

/**
 * Boots a guest, runs one command in it, and waits for its end, which comes a minute after `timeoutMs` at the latest.
 * QEMU is started in software emulation: that runs everywhere, and on every machine alike.
 */
export async function boot(run: GuestRun): Promise<GuestResult> {
  const started = performance.now();
  mkdirSync(run.share);
  const exports = Object.entries(run.env).map(([name, value]) => `export ${name}=${quoted(value)}\n`);
  // A limit in the guest as well, so that it ends even if this process is killed and leaves it behind.
  const limited = ["timeout", "-s", "KILL", String(Math.ceil(run.timeoutMs / 1000)), ...run.command];
  writeFileSync(join(run.share, "run"), `${exports.join("")}exec ${limited.map(quoted).join(" ")}\n`);
  const consoleLog = join(run.share, "console.log");
  const { qemu, kernel, initramfs } = run.image;
  const child = spawn(
    qemu.program,
    [
      ...qemu.prefix,
      ...["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "2G"],
      ...["-nodefaults", "-no-reboot", "-display", "none"],
      ...["-kernel", kernel, "-initrd", initramfs],
      // A panic ends QEMU at once, since the reboot that follows it is refused.
      ...["-append", "console=ttyS0 panic=-1 tsc=reliable"],
      ...["-serial", `file:${optionValue(consoleLog)}`],
      ...["-device", "virtio-serial-pci", "-chardev", "stdio,id=output,signal=off"],
      ...["-device", "virtserialport,chardev=output"],
      ...["-virtfs", `local,path=${optionValue(run.share)},mount_tag=share,security_model=none`],
      ...MACHINE_KINDS[run.machine].options,
    ],
    // Standard input stays open: at its end the port would count as closed, and the guest's writes wait for ever.
    { env: qemu.env, stdio: ["pipe", "pipe", "pipe"] },
  );
  const closed = once(child, "close");
  const kill = () => child.kill("SIGKILL");
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    kill();
  }, run.timeoutMs + BOOT_AND_END_MS);
  run.signal?.addEventListener("abort", kill);
  process.on("exit", kill);
  let qemuErrors = "";
  try {
    child.stdout.setEncoding("utf8").on("data", run.output);
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      qemuErrors += text;
    });
    if (run.signal?.aborted) kill();
    await closed;
  } finally {
    clearTimeout(timer);
    run.signal?.removeEventListener("abort", kill);
    process.off("exit", kill);
  }
  const kernelLog = readIfThere(consoleLog);
  const written = readIfThere(join(run.share, "status")).trim();
  const status = written === "" ? undefined : Number(written);
  return {
    status,
    timedOut: timedOut || status === KILLED_STATUS,
    kernelLog,
    complaints: complaintsIn(kernelLog),
    qemuErrors,
    ms: performance.now() - started,
  };
}
