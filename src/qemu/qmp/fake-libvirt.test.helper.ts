import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { isRefusal } from "./qemu.js";
import { SocketMonitor } from "./socket-monitor.js";

/** Hands its arguments and its input to the test, and prints what that says. */
const PROGRAM = (socket: string) => `#!${process.execPath}
const link = process.getBuiltinModule("node:net").connect(${JSON.stringify(socket)});
link.write(JSON.stringify(process.argv.slice(2)) + "\\n");
process.stdin.on("data", (text) => link.write(text)).on("end", () => link.end());
let rest = "";
link.setEncoding("utf8").on("data", (text) => {
  const lines = (rest + text).split("\\n");
  rest = lines.pop();
  for (const line of lines) {
    const { out, err, end } = JSON.parse(line);
    if (out !== undefined) process.stdout.write(out);
    if (err !== undefined) process.stderr.write(err);
    if (end !== undefined) process.exit(end);
  }
}).on("close", () => process.exit(0)).on("error", () => process.exit(1));
`;

interface FakeDomain {
  readonly uuid: string;
  /** libvirt's number; null: it does not run. */
  id: number | null;
  readonly monitor: SocketMonitor;
}

interface Said {
  readonly out?: string;
  readonly err?: string;
  readonly end?: number;
}

/**
 * For tests: a program `virsh` that behaves as libvirt's, with domains whose QEMUs are fakes at sockets. It repeats what it reads,
 * as one with readline does, or does not.
 */
export class FakeLibvirt implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-virsh-"));
  readonly domains = new Map<string, FakeDomain>();
  /** The arguments of each virsh that was started. */
  readonly calls: string[][] = [];
  /** What is said instead of an answer, on standard error. */
  failing: string | null = null;
  repeats = true;
  tellsEvents = true;
  readonly #server: Server;
  readonly #links = new Set<Socket>();
  #numbers = 0;

  private constructor() {
    const socket = join(this.folder, "link");
    this.#server = createServer((link) => void this.#serve(link).catch(() => link.destroy()));
    this.#server.listen(socket);
    const program = join(this.folder, "virsh");
    writeFileSync(program, PROGRAM(socket));
    chmodSync(program, 0o755);
  }

  /** @param domains paths of their QEMUs' sockets, by the domains' names */
  static async start(domains: Readonly<Record<string, string>>): Promise<FakeLibvirt> {
    const fake = new FakeLibvirt();
    for (const [name, path] of Object.entries(domains)) {
      const id = ++fake.#numbers;
      const uuid = `00000000-0000-4000-8000-${String(id).padStart(12, "0")}`;
      fake.domains.set(name, { uuid, id, monitor: await SocketMonitor.open(path) });
    }
    return fake;
  }

  /** PATH with this virsh first. */
  get path(): string {
    return `${this.folder}${delimiter}${process.env.PATH ?? ""}`;
  }

  /** The domain's QEMU ends. @param again libvirt starts another at once */
  stop(name: string, { again = false } = {}): void {
    const domain = this.domains.get(name);
    if (domain !== undefined) domain.id = again ? ++this.#numbers : null;
  }

  /** How many virsh run. */
  get running(): number {
    return this.#links.size;
  }

  /** Ends each virsh that runs, as if its connection were lost. */
  hangUp(): void {
    for (const link of this.#links) link.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.hangUp();
    await Promise.all(Array.from(this.domains.values(), ({ monitor }) => monitor[Symbol.asyncDispose]()));
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #serve(link: Socket): Promise<void> {
    this.#links.add(link);
    link.on("error", () => {}).on("close", () => this.#links.delete(link));
    const say = (said: Said) => {
      if (!link.destroyed) link.write(`${JSON.stringify(said)}\n`);
    };
    let first = true;
    // A virsh that was killed resets its link.
    const lines = createInterface({ input: link }).on("error", () => {});
    for await (const line of lines) {
      if (!first) {
        await this.#do(line, say, true);
        say({ out: "virsh # " });
        continue;
      }
      first = false;
      const args = JSON.parse(line) as string[];
      this.calls.push(args);
      const command = args.filter((each) => each !== "--quiet" && !each.startsWith("--connect="));
      if (command.length === 0) {
        say({ out: "virsh # " });
        continue;
      }
      let status = 0;
      for (const each of command.length === 1 ? command[0].split("; ") : [command.join(" ")]) {
        if (!(await this.#do(each, say, false))) status = 1;
        if (each.startsWith("qemu-monitor-event") && status === 0) return;
      }
      say({ end: status });
    }
  }

  /** Returns false where it could not. */
  async #do(line: string, say: (said: Said) => void, interactive: boolean): Promise<boolean> {
    if (interactive && this.repeats) say({ out: `${line}\n` });
    const [command, ...words] = line.split(" ");
    const named =
      /--domain(?:=(.+)| (\d+))/
        .exec(line)
        ?.slice(1)
        .find((each) => each !== undefined) ??
      words.at(-1) ??
      "";
    const [name, domain] = [...this.domains].find(([its, { id, uuid }]) => [its, uuid, String(id)].includes(named)) ?? [
      "",
    ];
    const refuse = (why: string) => {
      say({ err: `error: ${why}\n\n` });
      return false;
    };
    if (command === "echo") {
      const text = (words.at(-1) ?? "").replaceAll("'", "");
      say(words[0] === "--err" ? { err: `error: ${text}\n` } : { out: text });
      return true;
    }
    if (this.failing !== null) return refuse(this.failing);
    if (domain === undefined) return refuse(`failed to get domain '${named}'`);
    if (command === "domid") say({ out: `${domain.id ?? "-"}\n` });
    else if (command === "domname") say({ out: `${name}\n` });
    else if (command === "domuuid") say({ out: `${domain.uuid}\n` });
    else if (domain.id === null) return refuse("Requested operation is not valid: domain is not running");
    else if (command === "qemu-monitor-command") {
      const json = /--cmd '(.*)'$/.exec(line)?.[1] ?? "";
      say({ out: `${JSON.stringify(await this.#answer(domain, json))}\n` });
    } else if (command === "qemu-monitor-event" && this.tellsEvents) void this.#tell(name, domain, say);
    else return refuse(`unknown command: '${command}'`);
    return true;
  }

  async #answer({ monitor }: FakeDomain, json: string): Promise<object> {
    const { execute, arguments: args } = JSON.parse(json) as { execute: string; arguments: object };
    try {
      return { return: await monitor.execute(execute, args), id: "libvirt-1" };
    } catch (error) {
      if (!isRefusal(error)) throw error;
      return { id: "libvirt-1", error: { class: error.qemuClass, desc: error.reason } };
    }
  }

  async #tell(name: string, { monitor }: FakeDomain, say: (said: Said) => void): Promise<void> {
    try {
      for await (const { name: event, data, at } of monitor.events()) {
        const [seconds, rest] = [Math.floor(at / 1000), Math.round((at % 1000) * 1000)];
        const text = Object.keys(data).length === 0 ? "<null>" : JSON.stringify(data);
        const time = `${seconds}.${String(rest).padStart(6, "0")}`;
        say({ out: `event ${event} at ${time} for domain '${name}': ${text}\n` });
      }
    } catch {
      // The fake is over.
    }
  }
}
