import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { servableModel } from "../../src/devices/servable-models.js";
import { within } from "../../src/threads/within.js";
import type { DmaMode } from "../../src/vfio-user/server/client-memory.js";
import { PROGRAM } from "../support/program.js";

const START_MS = 30_000;
const DISK_BYTES = 2 ** 20;

/** Stands for the path of a disk's contents. */
const FILE = "file";

/** Options of models, of those that have them: little memory, so that its edges are met, and little traffic. */
const OPTIONS: ReadonlyMap<string, string> = new Map([
  ["rate", "0.05"],
  ["memory", "64K"],
  ["vram", "256K"],
  ["file", FILE],
]);

/** What a process takes of the machine. */
export interface Usage {
  readonly rssBytes: number;
  readonly descriptors: number;
  readonly mappings: number;
}

/** `dirtmap device` in a process of its own. */
export class ServedProcess implements AsyncDisposable {
  readonly path: string;
  readonly #directory: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  private constructor(directory: string, child: ChildProcess) {
    this.#directory = directory;
    this.path = join(directory, "device");
    this.#child = child;
    this.#ended = once(child, "close");
  }

  /** Starts it, and waits until it takes clients. @throws Error with its log where it ends instead */
  static async start(model: string, dma: DmaMode): Promise<ServedProcess> {
    const directory = mkdtempSync(join(tmpdir(), "dirtmap-fuzz-"));
    const log = openSync(join(directory, "log"), "a");
    const disk = join(directory, "disk");
    if (model === "nvme") {
      writeFileSync(disk, "");
      truncateSync(disk, DISK_BYTES);
    }
    const options = servableModel(model).options.flatMap(({ name }) => {
      const value = name === "file" && model !== "nvme" ? undefined : OPTIONS.get(name);
      return value === undefined ? [] : [`${name}=${value === FILE ? disk : value}`];
    });
    const args = [PROGRAM, "device", model, "--socket", join(directory, "device"), "--dma", dma, "--until-stdin-ends"];
    const child = spawn(process.execPath, [...args, ...options.flatMap((option) => ["--option", option])], {
      stdio: ["pipe", log, log],
    });
    closeSync(log);
    const served = new ServedProcess(directory, child);
    const until = performance.now() + START_MS;
    while (!/^serving /m.test(served.log)) {
      if (!served.isAlive || performance.now() > until) {
        const said = served.log;
        await served[Symbol.asyncDispose]();
        throw new Error(`the server of ${model} has not come up: ${said}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return served;
  }

  get isAlive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** All that it has printed. */
  get log(): string {
    return readFileSync(join(this.#directory, "log"), "utf8");
  }

  /** The server, or its device, has come to an end that no client may bring about. */
  get failure(): string | undefined {
    if (!this.isAlive) return `the server has ended: ${this.log.slice(-2000)}`;
    const { log } = this;
    const at = log.indexOf(" has failed, until it is reset: ");
    return at < 0 ? undefined : log.slice(log.lastIndexOf("\n", at) + 1, at + 2000);
  }

  usage(): Usage {
    const proc = `/proc/${this.#child.pid}`;
    const rss = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`${proc}/status`, "utf8"));
    return {
      rssBytes: Number(rss?.[1]) * 1024,
      descriptors: readdirSync(`${proc}/fd`).length,
      mappings: readFileSync(`${proc}/maps`, "utf8").split("\n").length - 1,
    };
  }

  /** What its descriptors open. */
  descriptors(): string[] {
    const proc = `/proc/${this.#child.pid}/fd`;
    return readdirSync(proc).flatMap((fd) => {
      try {
        return readlinkSync(join(proc, fd));
      } catch {
        // Closed since.
        return [];
      }
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin?.end();
    await within(this.#ended, START_MS, "the end of the server").catch(() => this.#child.kill("SIGKILL"));
    await this.#ended;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
