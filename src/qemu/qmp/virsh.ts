import { type ChildProcessByStdio, spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { DirtmapError, UsageError } from "../../errors.js";
import { safeText } from "../../safe-text.js";

/*
 * The program `virsh`, libvirt's command line. It is started without a shell. Its answers are in the order of what it was asked.
 */

/** How long virsh may take for what touches no guest. libvirt may first start its daemon. */
const ASK_MS = 30_000;

/** Bytes of a line; as a QMP socket's. */
const MAX_LINE = 8 * 2 ** 20;
/** Bytes of standard error that are kept for a message. */
const MAX_ERRORS = 4096;

/** How virsh is started. */
export interface VirshOptions {
  /** URI of libvirt's connection; left out: virsh's own default. */
  readonly connect?: string | undefined;
}

/** virsh said that it could not do something. */
export class VirshError extends DirtmapError {
  /** libvirt's own words, made harmless. */
  readonly reason: string;

  constructor(reason: string, attempted: string) {
    super(`libvirt could not ${attempted}: ${reason}`, { code: "LIBVIRT_REFUSED", attempted });
    this.reason = reason;
  }
}

/** A running virsh, whose lines are told. Disposing kills it. */
export class Virsh implements Disposable {
  /** Resolves with its exit status, or null after a signal, once all that it said was told. */
  readonly ended: Promise<number | null>;
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  #errors = "";

  /** @param onLine told each line of standard output; `isWhole` is false for the start of one that is still being written */
  constructor(
    { connect }: VirshOptions,
    args: readonly string[],
    onLine: (line: string, isWhole: boolean) => void,
    { env = {}, onErrors = () => {} }: { env?: NodeJS.ProcessEnv; onErrors?: () => void } = {},
  ) {
    const connection = connect === undefined ? [] : [`--connect=${connect}`];
    this.#child = spawn("virsh", ["--quiet", ...connection, ...args], {
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...plainEnvironment(), ...env },
    });
    this.#child.stdin.on("error", () => {});
    this.ended = new Promise((resolve, reject) => {
      this.#child.once("error", (error: NodeJS.ErrnoException) => reject(cannotStart(error)));
      this.#child.once("close", (code) => resolve(code));
    });
    this.ended.catch(() => {});
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#errors = (this.#errors + text).slice(-MAX_ERRORS);
      onErrors();
    });
    let rest = "";
    this.#child.stdout.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) onLine(line, true);
      if (rest.length > MAX_LINE) this[Symbol.dispose]();
      else if (rest !== "") onLine(rest, false);
    });
  }

  /** Writes a line to its standard input. */
  say(line: string): void {
    this.#child.stdin.write(`${line}\n`);
  }

  /** What it said on standard error since this was last called, as far as a mark, harmless and on one line. */
  takeErrors(mark?: string): string {
    const said = mark === undefined ? this.#errors : this.#errors.split(mark)[0];
    this.#errors = "";
    return words(said);
  }

  /** True once it has said that on standard error. */
  hasSaid(mark: string): boolean {
    return this.#errors.includes(mark);
  }

  [Symbol.dispose](): void {
    this.#child.kill("SIGKILL");
  }
}

/**
 * Has virsh do one command; returns the lines that it printed.
 * @throws VirshError; UsageError `NO_VIRSH`; DirtmapError `LIBVIRT_TIMED_OUT`
 */
export async function askVirsh(options: VirshOptions, args: readonly string[], attempted: string): Promise<string[]> {
  const lines: string[] = [];
  using virsh = new Virsh(options, args, (line, isWhole) => {
    if (isWhole && line.trim() !== "") lines.push(line.trim());
  });
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    virsh[Symbol.dispose]();
  }, ASK_MS);
  const status = await virsh.ended.finally(() => clearTimeout(timer));
  if (isLate) {
    throw new DirtmapError(`libvirt has not answered for ${ASK_MS} ms`, {
      code: "LIBVIRT_TIMED_OUT",
      attempted,
      remedy: "see whether libvirt's daemon hangs: its own log",
    });
  }
  if (status !== 0) throw new VirshError(virsh.takeErrors(), attempted);
  return lines;
}

/** virsh in its interactive mode: one connection to libvirt for many commands, which it does one after the other. */
export class VirshShell implements Disposable {
  readonly #virsh: Virsh;
  /** Resolves with what ended it. */
  readonly ended: Promise<DirtmapError>;
  #count = 0;
  #under: { readonly mark: string; answer: string | null; done(): void } | undefined;

  constructor(options: VirshOptions) {
    this.#virsh = new Virsh(options, [], (line, isWhole) => this.#take(line, isWhole), { env: NO_HISTORY });
    this.ended = this.#virsh.ended.then(
      () =>
        new DirtmapError(`virsh has ended: ${this.#virsh.takeErrors() || "it did not say why"}`, {
          code: "QMP_CLOSED",
          remedy: "see whether libvirt's daemon runs",
        }),
      (error: DirtmapError) => error,
    );
  }

  /**
   * Does a command whose answer is a line of JSON. Called once the one before has been answered.
   * @param command a virsh command line, in virsh's own quoting
   * @returns the line; null for a command that printed none
   * @throws VirshError; of {@link ended}
   */
  async json(command: string, attempted: string): Promise<string | null> {
    const number = ++this.#count;
    const mark = `dirtmap-${number}`;
    const answered = new Promise<string | null>((resolve) => {
      const under = { mark, answer: null, done: () => resolve(under.answer) };
      this.#under = under;
    });
    this.#virsh.takeErrors();
    // The mark says that the command is over. virsh may repeat on standard output what it reads, hence the quotes.
    this.#virsh.say(`${command}\necho --err dirtmap-''${number}\necho dirtmap-''${number}`);
    const ended = this.ended.then((error) => Promise.reject(error));
    const answer = await Promise.race([answered, ended]);
    if (answer !== null) return answer;
    // The two outputs are two pipes: the other mark may come a moment later.
    for (let tries = 0; tries < 50 && !this.#virsh.hasSaid(mark); tries++) await sleep(10);
    const why = this.#virsh.takeErrors(mark);
    if (why !== "") throw new VirshError(why, attempted);
    return null;
  }

  [Symbol.dispose](): void {
    this.#virsh[Symbol.dispose]();
  }

  #take(line: string, isWhole: boolean): void {
    const under = this.#under;
    if (under === undefined) return;
    // virsh breaks no line after its prompt and what `echo` printed; only readline does, after what was read.
    const [lead = ""] = /^(?:virsh [#>] |dirtmap-\d+)*/.exec(line) ?? [];
    const said = line.slice(lead.length);
    if (isWhole && under.answer === null && said.startsWith("{")) under.answer = said;
    if (!lead.match(/dirtmap-\d+/g)?.includes(under.mark)) return;
    this.#under = undefined;
    under.done();
  }
}

/** A word of a virsh command line: text without control characters, as {@link JSON.stringify} makes it. */
export function virshWord(json: string): string {
  const ascii = json.replace(/[^ -~]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return `'${ascii.replaceAll("'", "\\u0027")}'`;
}

/** Messages are compared, and so in English; there is no terminal to draw on, and no wish for debug output. */
function plainEnvironment(): NodeJS.ProcessEnv {
  const { VIRSH_DEBUG: _debug, VIRSH_LOG_FILE: _log, ...env } = process.env;
  return { ...env, LC_ALL: "C", TERM: "dumb", INPUTRC: "/dev/null" };
}

/** In its interactive mode virsh keeps commands in a file below this folder, among those that the user typed. */
const NO_HISTORY = { XDG_CACHE_HOME: "/dev/null" };

/** Says that a command is over; of the one before it may come late. */
const MARK = /^dirtmap-\d+$/;

function words(errors: string): string {
  const lines = errors.split("\n").map((line) => line.trim().replace(/^error: */, ""));
  return safeText(lines.filter((line) => line !== "" && !MARK.test(line)).join("; "), 1000);
}

function cannotStart(error: NodeJS.ErrnoException): UsageError {
  return new UsageError(
    `virsh can't be started: ${error.code === "ENOENT" ? "there is no such program" : error.message}`,
    {
      code: "NO_VIRSH",
      attempted: "reach a guest through libvirt",
      remedy: "install libvirt's command line (Debian: libvirt-clients), or give QEMU's own monitor with --qmp",
      cause: error,
    },
  );
}
