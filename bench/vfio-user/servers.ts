import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Programs } from "./programs.js";

const LIMIT_MS = 20_000;

/** `dirtmap device proxy`, as an operator starts it. */
const PROXY = [
  process.execPath,
  fileURLToPath(new URL("../../../bin/dirtmap.js", import.meta.url)),
  ...["device", "proxy", "--until-stdin-ends", "--json"],
];

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

  /** @param folder for their sockets @param proxied true: each is reached by way of a proxy */
  static async start(
    programs: Programs,
    folder: string,
    { ways = WAYS, proxied = false }: { ways?: readonly Way[]; proxied?: boolean } = {},
  ): Promise<Servers> {
    const servers = new Servers();
    try {
      for (const way of ways) {
        const command = commandOf(way, programs);
        if (command === null) continue;
        const socket = join(folder, proxied ? `${way}-served` : way);
        await servers.#start([...command, socket, way.endsWith("-poll") ? "poll" : "block"]);
        if (proxied) await servers.#start([...PROXY, "--server", socket, "--socket", join(folder, way)]);
        servers.sockets.set(way, join(folder, way));
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

  async #start([program, ...args]: readonly string[]): Promise<void> {
    // Its input is a pipe from here: our own server ends with it, the others are killed.
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.#children.push(child);
    if (child.stdout === null) throw new Error("standard output is a pipe");
    await once(child.stdout, "data", { signal: AbortSignal.timeout(LIMIT_MS) });
  }
}

function commandOf(way: Way, { bareServer, libvfioUserServer }: Programs): readonly string[] | null {
  if (way.startsWith("dirtmap")) {
    return [process.execPath, fileURLToPath(new URL("./dirtmap-server.js", import.meta.url))];
  }
  if (way.startsWith("bare")) return [bareServer];
  return libvfioUserServer === null ? null : [libvfioUserServer];
}
