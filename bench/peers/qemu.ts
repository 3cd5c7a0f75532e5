import { type ChildProcess, spawn } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/*
 * QEMU as a peer: moves a paused guest whose memory is random from one QEMU to another over loopback with multifd, on
 * this machine, in the same run as our own figures. It needs no guest software and no KVM: the guest never runs.
 */

export interface QemuOptions {
  /** A Debian tree to run QEMU in with chroot, /dev and /dev/shm mounted in it; absent: the QEMU on PATH. */
  readonly root?: string | undefined;
  /** Bytes of guest memory. */
  readonly memory: number;
  readonly channels: number;
}

export interface QemuResult {
  readonly version: string;
  /** What query-migrate says. */
  readonly totalMs: number;
  readonly downtimeMs: number;
  readonly bytes: number;
}

/** One migration. @throws Error where QEMU is missing or says no */
export async function migrateWithQemu({ root, memory, channels }: QemuOptions): Promise<QemuResult> {
  const folder = mkdtempSync(join(root ?? "", "/dev/shm/dirtmap-qemu-"));
  const inside = root === undefined ? folder : folder.slice(root.length);
  const children: ChildProcess[] = [];
  const start = async (backend: string, extra: readonly string[]): Promise<Qmp> => {
    const port = await freePort();
    const args = [
      "qemu-system-x86_64",
      ...["-machine", "q35,accel=tcg,memory-backend=ram", "-nodefaults", "-display", "none", "-S"],
      ...["-m", `${memory / 2 ** 20}M`],
      ...["-object", `${backend},id=ram,size=${memory}`],
      ...["-qmp", `tcp:127.0.0.1:${port},server=on,wait=off`],
      ...extra,
    ];
    const command = root === undefined ? args : ["chroot", root, ...args];
    const child = spawn(command[0], command.slice(1), { stdio: ["ignore", "ignore", "pipe"] });
    children.push(child);
    let stderr = "";
    child.stderr?.on("data", (chunk) => {
      stderr += chunk;
    });
    for (let attempt = 0; attempt < 100; attempt++) {
      await sleep(50);
      if (child.exitCode !== null) throw new Error(`qemu-system-x86_64 ended: ${stderr.trim()}`);
      const socket = await tryConnect(port);
      if (socket !== null) return Qmp.open(socket);
    }
    throw new Error("QEMU did not answer within 5 s");
  };
  try {
    writeRandom(join(folder, "source"), memory);
    const dataPort = await freePort();
    const source = await start(`memory-backend-file,share=on,mem-path=${join(inside, "source")}`, []);
    const destination = await start("memory-backend-ram", ["-incoming", "defer"]);
    for (const qmp of [source, destination]) {
      await qmp.execute("migrate-set-capabilities", { capabilities: [{ capability: "multifd", state: true }] });
      await qmp.execute("migrate-set-parameters", {
        "multifd-channels": channels,
        "max-bandwidth": 100 * 2 ** 30,
      });
    }
    const uri = `tcp:127.0.0.1:${dataPort}`;
    await destination.execute("migrate-incoming", { uri });
    const { qemu } = (await source.execute("query-version", {})) as { qemu: Record<string, number> };
    await source.execute("migrate", { uri });
    for (let waited = 0; waited < 60_000; waited += 20) {
      await sleep(20);
      const state = (await source.execute("query-migrate", {})) as QemuMigration;
      if (state.status === "failed") throw new Error(`QEMU's migration failed: ${state["error-desc"] ?? ""}`);
      if (state.status === "completed") {
        return {
          version: `${qemu.major}.${qemu.minor}.${qemu.micro}`,
          totalMs: state["total-time"],
          downtimeMs: state.downtime,
          bytes: state.ram.transferred,
        };
      }
    }
    throw new Error("QEMU's migration did not end within a minute");
  } finally {
    for (const child of children) child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }
}

interface QemuMigration {
  readonly status: string;
  readonly "total-time": number;
  readonly downtime: number;
  readonly "error-desc"?: string;
  readonly ram: { readonly transferred: number };
}

/** A client of QEMU's machine protocol: one command at a time, events passed over. */
class Qmp {
  readonly #socket: Socket;
  #buffer = "";
  #waiting: ((message: Record<string, unknown>) => void) | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("error", () => {});
    socket.on("data", (chunk) => {
      this.#buffer += chunk;
      for (let end = this.#buffer.indexOf("\n"); end >= 0; end = this.#buffer.indexOf("\n")) {
        const message = JSON.parse(this.#buffer.slice(0, end)) as Record<string, unknown>;
        this.#buffer = this.#buffer.slice(end + 1);
        if ("return" in message || "error" in message) this.#waiting?.(message);
      }
    });
  }

  static async open(socket: Socket): Promise<Qmp> {
    const qmp = new Qmp(socket);
    await qmp.execute("qmp_capabilities", {});
    return qmp;
  }

  async execute(command: string, args: Record<string, unknown>): Promise<unknown> {
    const answer = new Promise<Record<string, unknown>>((resolve, reject) => {
      this.#waiting = resolve;
      setTimeout(() => reject(new Error(`QEMU did not answer ${command}`)), 30_000).unref();
    });
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    const message = await answer;
    if ("error" in message) throw new Error(`QEMU refused ${command}: ${JSON.stringify(message.error)}`);
    return message.return;
  }
}

function writeRandom(path: string, bytes: number): void {
  const chunk = new Uint8Array(16 * 2 ** 20);
  const fd = openSync(path, "w");
  for (let done = 0; done < bytes; done += chunk.length) {
    randomFillSync(chunk);
    writeSync(fd, chunk, 0, Math.min(chunk.length, bytes - done));
  }
  closeSync(fd);
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

function tryConnect(port: number): Promise<Socket | null> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => resolve(socket));
    socket.once("error", () => resolve(null));
  });
}
