import { chmodSync, rmSync } from "node:fs";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { join, resolve } from "node:path";
import { z } from "zod";
import { DirtmapError, explain, UsageError } from "../errors.js";
import { shellWord } from "../shell-word.js";
import { lives } from "../sys/process-identity.js";
import { checkMigrationId, Journal, type JournalRecord, journalPath, readJournal } from "./journal.js";
import { type FindMachine, type OutlivingMachine, readNote, removeNote } from "./outliving.js";

/*
 * How the operator tells a source that has given its machine up what to do: a UNIX socket beside the journal, open as long
 * as the migration. `dirtmap resume ID` and `dirtmap abort ID` connect to it.
 *
 * The source speaks first, and the decision is said only after that: a process that stands still never finds, when it
 * wakes up, a decision of which the operator was told that it had not arrived.
 */

export const DECISIONS = ["resume", "abort"] as const;
/** An operator's decision. `resume`: the destination does not and will never run the machine. `abort`: the source gives it up. */
export type Decision = (typeof DECISIONS)[number];

/** sun_path has 108 bytes on Linux and 104 on macOS, the terminating 0 included. */
const MAX_SOCKET_PATH = 103;
const MAX_REQUEST_BYTES = 64;
const MAX_ANSWER_BYTES = 8192;
/** Clients at a time; more are turned away. */
const MAX_CLIENTS = 16;
/** Until the source's process speaks: it does at once, unless it stands still. */
const GREETING_MS = 10_000;
/** Until a decision is carried out: the time for RUNNING, and that for devices to run again. */
const ANSWER_MS = 60_000;

/**
 * Where a source listens.
 * @throws UsageError `JOURNAL` where the path is too long for a UNIX socket
 */
export function decisionSocket(directory: string, migration: string): string {
  const path = join(directory, `${migration}.sock`);
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
    throw new UsageError(`the journal's directory has too long a path: ${directory}`, {
      code: "JOURNAL",
      remedy: `give one with --journal of at most ${MAX_SOCKET_PATH - migration.length - 6} bytes`,
    });
  }
  return path;
}

/** The command that tells a source of its operator's decision, ready for a shell in any directory. */
export function decisionCommand(decision: Decision, migration: string, directory: string): string {
  return `dirtmap ${decision} ${migration} --journal ${shellWord(resolve(directory))}`;
}

const greetingSchema = z.strictObject({ migration: z.string().max(64), pid: z.int().min(1) });
const answerSchema = z.strictObject({ done: z.boolean(), message: z.string().max(4096) });
type Greeting = z.output<typeof greetingSchema>;
type Answer = z.output<typeof answerSchema>;

/** Listens for the operator until it is disposed. */
export class DecisionListener implements AsyncDisposable {
  readonly #path: string;
  readonly #greeting: Greeting;
  readonly #decide: (decision: Decision) => Promise<string>;
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;

  private constructor(path: string, migration: string, decide: (decision: Decision) => Promise<string>) {
    this.#path = path;
    this.#greeting = { migration, pid: process.pid };
    this.#decide = decide;
    this.#server = createServer((socket) => this.#welcome(socket));
    this.#server.maxConnections = MAX_CLIENTS;
  }

  /**
   * @param decide carries a decision out and returns what came of it, as a sentence; what it throws is the answer, too
   * @throws UsageError `JOURNAL` where the socket can't be made
   */
  static async open(
    directory: string,
    migration: string,
    decide: (decision: Decision) => Promise<string>,
  ): Promise<DecisionListener> {
    const path = decisionSocket(directory, migration);
    const listener = new DecisionListener(path, migration, decide);
    const server = listener.#server;
    // The id is this process's alone, by its journal: what is there was left behind.
    rmSync(path, { force: true });
    try {
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject).listen({ path, readableAll: false, writableAll: false }, resolve);
      });
      // The umask says what others may do; a folder that Dirtmap has not made itself may be open to them.
      chmodSync(path, 0o600);
    } catch (cause) {
      server.close();
      throw new UsageError(`no socket can be made at ${path}: ${explain(cause)}`, {
        code: "JOURNAL",
        remedy: "give a directory with --journal in which sockets can be made",
        cause,
      });
    }
    // A client that can't be accepted tries again; this process must not end for it.
    server.removeAllListeners("error").on("error", () => {});
    return listener;
  }

  #welcome(socket: Socket): void {
    this.#sockets.add(socket);
    let text = "";
    let asked = false;
    const answer = (answer: Answer) => socket.end(line(answer));
    socket.setEncoding("utf8");
    socket.setTimeout(ANSWER_MS, () => socket.destroy());
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    socket.on("data", (more: string) => {
      text += more;
      if (text.length > MAX_REQUEST_BYTES) socket.destroy();
      if (asked || socket.destroyed || !text.includes("\n")) return;
      asked = true;
      const decision = DECISIONS.find((known) => known === text.trim());
      if (decision === undefined) answer({ done: false, message: "say resume or abort" });
      else {
        this.#decide(decision).then(
          (message) => answer({ done: true, message }),
          (error: unknown) => answer({ done: false, message: explain(error).slice(0, 4096) }),
        );
      }
    });
    socket.write(line(this.#greeting));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      // What was answered is flushed by end(); one that never asked is cut off.
      for (const socket of this.#sockets) if (!socket.writableEnded) socket.destroy();
    });
    rmSync(this.#path, { force: true });
  }
}

function line(value: Greeting | Answer): string {
  return `${JSON.stringify(value)}\n`;
}

/**
 * What `dirtmap resume` and `dirtmap abort` do: tells the source's process, and returns its answer as a sentence. If the
 * process has ended, `abort` is recorded in its place; a machine that outlives its process is taken back, or given up.
 * @param greetingMs how long a process that stands still is waited for
 * @param find finds a machine that outlives its process; without it there is none
 * @throws UsageError `NO_SUCH_MIGRATION`, `NOT_UNDECIDED`; DirtmapError `DECISION_REFUSED`, with the source's words;
 * `SOURCE_ENDED` where the machine ended with its process; `SOURCE_SILENT`, `SOURCE_NOT_LISTENING`, `SOURCE_ELSEWHERE`
 * where nothing was decided; `NO_ANSWER` where it isn't known
 */
export async function sendDecision(
  directory: string,
  migration: string,
  decision: Decision,
  greetingMs = GREETING_MS,
  find?: FindMachine,
): Promise<string> {
  const found = readSource(directory, migration);
  const answer = await ask(decisionSocket(directory, migration), decision, found, greetingMs);
  if (answer !== null) {
    if (answer.done) return answer.message;
    throw new DirtmapError(answer.message, { code: "DECISION_REFUSED" });
  }
  // What it was before it was asked may have changed since.
  const record = readSource(directory, migration);
  const note = find === undefined || record.state === "gone" ? null : readNote(directory, migration);
  if (find !== undefined && note !== null && lives(record.process) === false) {
    return await decideForMachine(record, decision, { directory, find: () => find(note, migration) });
  }
  return decideFor(record, directory, decision);
}

function readSource(directory: string, migration: string): JournalRecord {
  checkMigrationId(migration);
  const record = readJournal(directory, migration, "source");
  if (record !== null) return record;
  throw new UsageError(`there is no migration '${migration}' in ${directory}`, {
    code: "NO_SUCH_MIGRATION",
    remedy:
      "give the id that `dirtmap migrate` printed, and --journal if it was given there; `dirtmap list` shows those here",
  });
}

/** Decides in the place of a source at whose socket nobody listens. */
function decideFor(record: JournalRecord, directory: string, decision: Decision): string {
  const { migration, peer } = record;
  const { pid, host } = record.process;
  const alive = lives(record.process);
  if (record.state !== "given-up") {
    throw new UsageError(
      `migration '${migration}' waits for no decision: its source is recorded as '${record.state}'`,
      { code: "NOT_UNDECIDED" },
    );
  }
  if (alive === true) {
    throw new DirtmapError(`the source's process (${pid}) lives and takes no decision any more: nothing was decided`, {
      code: "SOURCE_NOT_LISTENING",
      attempted: `${decision} migration ${migration}`,
      remedy: `the machine is that program's to run or to end; once process ${pid} has ended, \`abort\` can be recorded`,
    });
  }
  if (alive === null) {
    throw new DirtmapError(
      `the source's process ran on another computer, '${host}', and whether it lives can't be told from here: nothing was decided`,
      {
        code: "SOURCE_ELSEWHERE",
        attempted: `${decision} migration ${migration}`,
        remedy: `decide on ${host}; if it is gone for good, remove ${journalPath(directory, migration, "source")}`,
      },
    );
  }
  if (decision === "abort") {
    Journal.reopenSource(directory, record).record("gone");
    return `the source's process (${pid}) had ended already; the machine is recorded as gone from here`;
  }
  throw new DirtmapError(`the source's process (${pid}) has ended, and the machine's memory with it`, {
    code: "SOURCE_ENDED",
    attempted: `resume migration ${migration}`,
    remedy: `the machine runs at ${peer} or nowhere: look there, then \`${decisionCommand("abort", migration, directory)}\``,
  });
}

/** Decides about a machine whose process has ended, and which has not ended with it. */
async function decideForMachine(
  record: JournalRecord,
  decision: Decision,
  { directory, find }: { directory: string; find: () => Promise<OutlivingMachine> },
): Promise<string> {
  const { migration, state } = record;
  const journal = Journal.reopenSource(directory, record);
  const isGivenUp = state === "given-up";
  let machine: OutlivingMachine;
  try {
    machine = await find();
  } catch (error) {
    if (decision === "resume" || (error as { code?: string }).code !== "MACHINE_ENDED") throw error;
    journal.record("gone");
    removeNote(directory, migration);
    return `the machine is recorded as gone from here: ${explain(error)}`;
  }
  await using found = machine;
  if (decision === "abort" && !isGivenUp) {
    throw new UsageError("the source has never given the machine up: it is this side's", {
      code: "NOT_UNDECIDED",
      remedy: `let it go on: \`${decisionCommand("resume", migration, directory)}\``,
    });
  }
  // First what binds, then what follows from it.
  if (isGivenUp) journal.record(decision === "abort" ? "gone" : "running");
  const { said, isWhole } =
    decision === "abort" ? { said: await found.giveUp(), isWhole: true } : await found.takeBack();
  if (isWhole) removeNote(directory, migration);
  return said;
}

/** Null: nobody listens. */
async function ask(
  path: string,
  decision: Decision,
  { migration, process }: JournalRecord,
  greetingMs: number,
): Promise<Answer | null> {
  return await new Promise<Answer | null>((resolve, reject) => {
    const socket = createConnection(path);
    let text = "";
    let greeted = false;
    let late: NodeJS.Timeout | undefined;
    const settle = (finish: () => void) => {
      clearTimeout(late);
      socket.destroy();
      finish();
    };
    const lines = () => text.split("\n").slice(0, -1);
    const failed = (cause?: unknown) =>
      settle(() => reject(greeted ? unanswered(migration, cause) : silent(process.pid, cause)));
    late = setTimeout(failed, greetingMs);
    socket.setEncoding("utf8");
    socket.on("data", (more: string) => {
      text += more;
      if (text.length > MAX_ANSWER_BYTES) return failed();
      const [greeting, answer] = lines();
      try {
        if (!greeted && greeting !== undefined) {
          if (greetingSchema.parse(JSON.parse(greeting)).migration !== migration)
            throw new Error("another migration's");
          greeted = true;
          clearTimeout(late);
          late = setTimeout(failed, ANSWER_MS);
          socket.write(`${decision}\n`);
        }
        if (answer !== undefined) {
          const parsed = answerSchema.parse(JSON.parse(answer));
          settle(() => resolve(parsed));
        }
      } catch (cause) {
        failed(cause);
      }
    });
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (!greeted && (error.code === "ENOENT" || error.code === "ECONNREFUSED")) settle(() => resolve(null));
      else failed(error);
    });
    socket.on("close", () => failed());
  });
}

function silent(pid: number, cause: unknown): DirtmapError {
  return new DirtmapError(`the source's process (${pid}) doesn't speak: nothing was decided`, {
    code: "SOURCE_SILENT",
    remedy: `if it is stopped, let it go on (\`kill -CONT ${pid}\`), then decide again`,
    cause,
  });
}

function unanswered(migration: string, cause: unknown): DirtmapError {
  return new DirtmapError("the source was told, and gave no answer", {
    code: "NO_ANSWER",
    remedy: `\`dirtmap list\` shows what became of migration ${migration}`,
    cause,
  });
}
