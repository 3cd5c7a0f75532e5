import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What a fake answers: a value, an error of QEMU's, or what a test makes of it. */
export type FakeAnswer = unknown | { readonly error: { readonly class: string; readonly desc: string } };

/** A command as it came. */
export interface FakeCommand {
  readonly execute: string;
  readonly arguments: Readonly<Record<string, unknown>>;
  readonly id: string;
}

const GREETING = {
  QMP: { version: { qemu: { major: 11, minor: 1, micro: 3 }, package: "fake" }, capabilities: ["oob"] },
};

/** For tests: the QMP monitor of a QEMU that says what it is told to, at a socket of its own. */
export class FakeQemu implements AsyncDisposable {
  readonly path: string;
  /** Commands that came, in order, without those that agree on capabilities. */
  readonly commands: FakeCommand[] = [];
  /** Answers by command; one that is missing is unknown to it. Called with the command. */
  readonly answers = new Map<string, (command: FakeCommand) => FakeAnswer | undefined>();
  /** What is said to a client that connects; null: nothing. */
  greeting: string | null = JSON.stringify(GREETING);
  /** Its main loop stands still: only what is asked out of band is answered. */
  standsStill = false;
  readonly #folder: string;
  readonly #server: Server;
  #client: Socket | undefined;

  private constructor() {
    this.#folder = mkdtempSync(join(tmpdir(), "dirtmap-qmp-"));
    this.path = join(this.#folder, "qmp");
    this.#server = createServer((socket) => this.#serve(socket));
  }

  static async start(): Promise<FakeQemu> {
    const fake = new FakeQemu();
    await new Promise<void>((resolve) => fake.#server.listen(fake.path, resolve));
    return fake;
  }

  /** Answers a command with this from now on. */
  answer(command: string, value: FakeAnswer): this {
    this.answers.set(command, () => value);
    return this;
  }

  /** Answers a command with what this makes of it; undefined: not at all. */
  with(command: string, make: (command: FakeCommand) => FakeAnswer | undefined): this {
    this.answers.set(command, make);
    return this;
  }

  refuse(command: string, desc: string, its = "GenericError"): this {
    return this.answer(command, { error: { class: its, desc } });
  }

  /** Never answers it. */
  ignore(command: string): this {
    this.answers.set(command, () => undefined);
    return this;
  }

  /** @param atMs by QEMU's clock */
  event(event: string, data?: object, atMs = 1500): void {
    const timestamp = { seconds: Math.floor(atMs / 1000), microseconds: Math.round((atMs % 1000) * 1000) };
    this.say(JSON.stringify({ event, ...(data === undefined ? {} : { data }), timestamp }));
  }

  /** Sends a line as it is. */
  say(line: string): void {
    this.#client?.write(`${line}\r\n`);
  }

  /** Closes the connection, as a QEMU that ends. */
  hangUp(): void {
    this.#client?.destroySoon();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client?.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #serve(socket: Socket): void {
    // QEMU serves one client; the next waits.
    if (this.#client !== undefined && !this.#client.destroyed) return;
    this.#client = socket;
    socket.on("error", () => {});
    if (this.greeting !== null) this.say(this.greeting);
    let text = "";
    socket.setEncoding("utf8").on("data", (part: string) => {
      text += part;
      const lines = text.split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) {
        const { "exec-oob": outOfBand, ...command } = JSON.parse(line) as FakeCommand & { "exec-oob"?: string };
        if (outOfBand !== undefined) this.#take({ ...command, execute: outOfBand }, true);
        else if (!this.standsStill) this.#take(command, false);
      }
    });
  }

  #take(command: FakeCommand, outOfBand: boolean): void {
    const { execute, id } = command;
    if (execute === "qmp_capabilities") {
      this.say(JSON.stringify({ return: {}, id }));
      return;
    }
    this.commands.push(command);
    const make = this.answers.get(execute);
    const unknown = { error: { class: "CommandNotFound", desc: `The command ${execute} has not been found` } };
    const answer = make === undefined ? unknown : make(command);
    if (answer === undefined || (this.standsStill && !outOfBand)) return;
    const isError = typeof answer === "object" && answer !== null && "error" in answer;
    this.say(JSON.stringify(isError ? { ...answer, id } : { return: answer, id }));
  }
}
