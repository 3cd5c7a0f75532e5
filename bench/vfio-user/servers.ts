import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Programs } from "./programs.js";

const LIMIT_MS = 20_000;

/** The servers that take turns, by name; `-poll`: never asleep while it has a client. */
export const WAYS = ["dirtmap", "libvfio-user", "bare", "dirtmap-poll", "libvfio-user-poll", "bare-poll"] as const;
export type Way = (typeof WAYS)[number];

/** The servers that there are, each at a socket, until disposed. */
export class Servers implements AsyncDisposable {
  readonly sockets = new Map<Way, string>();
  readonly #children: ChildProcess[] = [];
  readonly #kill = (): void => {
    for (const child of this.#children) child.kill("SIGKILL");
  };

  private constructor() {
    process.on("exit", this.#kill);
  }

  /** @param folder for their sockets */
  static async start(programs: Programs, folder: string): Promise<Servers> {
    const servers = new Servers();
    try {
      for (const way of WAYS) {
        const command = commandOf(way, programs);
        if (command !== null) await servers.#start(way, command, join(folder, way));
      }
      return servers;
    } catch (error) {
      await servers[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const running = this.#children.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null);
    const ends = running.map((child) => once(child, "exit"));
    this.#kill();
    await Promise.all(ends);
    process.off("exit", this.#kill);
  }

  async #start(way: Way, command: readonly string[], socket: string): Promise<void> {
    const [program, ...args] = [...command, socket, way.endsWith("-poll") ? "poll" : "block"];
    // Its input is a pipe from here: our own server ends with it, the others are killed.
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.#children.push(child);
    if (child.stdout === null) throw new Error("standard output is a pipe");
    await once(child.stdout, "data", { signal: AbortSignal.timeout(LIMIT_MS) });
    this.sockets.set(way, socket);
  }
}

function commandOf(way: Way, { bareServer, libvfioUserServer }: Programs): readonly string[] | null {
  if (way.startsWith("dirtmap")) {
    return [process.execPath, fileURLToPath(new URL("./dirtmap-server.js", import.meta.url))];
  }
  if (way.startsWith("bare")) return [bareServer];
  return libvfioUserServer === null ? null : [libvfioUserServer];
}
