import { chmodSync, rmSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { z } from "zod";
import { DirtmapError, UsageError } from "../errors.js";
import { within } from "./deadline.js";
import { Journal, readJournal } from "./journal.js";

/*
 * How the operator tells a paused source what to do when GO was not confirmed: a UNIX socket beside the journal, open
 * only while the source is undecided. `dirtmap resume ID` and `dirtmap abort ID` connect to it.
 */

export const DECISIONS = ["resume", "abort"] as const;
/** `resume`: the destination does not run and never will. `abort`: the source's machine is given up. */
export type Decision = (typeof DECISIONS)[number];

/** sun_path has 108 bytes on Linux and 104 on macOS, the terminating 0 included. */
const MAX_SOCKET_PATH = 103;
const MAX_REQUEST_BYTES = 64;
const ANSWER_MS = 10_000;

/**
 * Where an undecided source listens.
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

const answerSchema = z.strictObject({ done: z.boolean(), message: z.string().max(4096) });
type Answer = z.output<typeof answerSchema>;

/** A decision that came, and the way to answer whoever made it. */
export interface Decided {
  readonly decision: Decision;
  /** Tells them how it went. */
  answer(answer: Answer): void;
}

/** Waits for the operator. Resolves with the first decision; disposing stops listening. */
export class DecisionListener implements AsyncDisposable {
  readonly decided: Promise<Decided>;
  readonly #close: () => Promise<void>;

  private constructor(decided: Promise<Decided>, close: () => Promise<void>) {
    this.decided = decided;
    this.#close = close;
  }

  /** @throws the system's error where the socket can't be made */
  static async open(directory: string, migration: string): Promise<DecisionListener> {
    const path = decisionSocket(directory, migration);
    rmSync(path, { force: true });
    let decide: (decided: Decided) => void = () => {};
    const decided = new Promise<Decided>((resolve) => {
      decide = resolve;
    });
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      let text = "";
      socket.setEncoding("utf8");
      socket.setTimeout(ANSWER_MS, () => socket.destroy());
      socket.on("close", () => sockets.delete(socket));
      socket.on("error", () => socket.destroy());
      socket.on("data", (more: string) => {
        text += more;
        if (text.length > MAX_REQUEST_BYTES) socket.destroy();
        if (!text.includes("\n")) return;
        const decision = DECISIONS.find((known) => known === text.trim());
        if (decision === undefined) {
          socket.end(`${JSON.stringify({ done: false, message: "say resume or abort" } satisfies Answer)}\n`);
          return;
        }
        decide({ decision, answer: (answer) => socket.end(`${JSON.stringify(answer)}\n`) });
      });
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ path, readableAll: false, writableAll: false }, resolve);
    });
    // The umask says what others may do; a folder that Dirtmap has not made itself may be open to them.
    chmodSync(path, 0o600);
    return new DecisionListener(decided, async () => {
      await new Promise<void>((resolve) => {
        server.close(() => resolve());
        // What was answered is flushed by end(); one that never asked is cut off.
        for (const socket of sockets) if (!socket.writableEnded) socket.destroy();
      });
      rmSync(path, { force: true });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
  }
}

/**
 * What `dirtmap resume` and `dirtmap abort` do: tells the source's process, and returns its answer as a sentence.
 * @throws UsageError `NO_SUCH_MIGRATION`, `NOT_UNDECIDED`; DirtmapError `SOURCE_ENDED` where the machine ended with its
 * process
 */
export async function sendDecision(directory: string, migration: string, decision: Decision): Promise<string> {
  const record = readJournal(directory, migration, "source");
  if (record === null) {
    throw new UsageError(`there is no migration '${migration}' in ${directory}`, {
      code: "NO_SUCH_MIGRATION",
      remedy: "give the id that `dirtmap migrate` printed, and --journal if it was given there",
    });
  }
  const answer = await ask(decisionSocket(directory, migration), decision);
  if (answer !== null) {
    if (answer.done) return answer.message;
    throw new DirtmapError(answer.message, { code: "DECISION_REFUSED" });
  }
  if (record.state !== "given-up") {
    throw new UsageError(
      `migration '${migration}' waits for no decision: its source is recorded as '${record.state}'`,
      {
        code: "NOT_UNDECIDED",
      },
    );
  }
  if (decision === "abort") {
    Journal.reopenSource(directory, record).record("gone");
    return `the source's process (${record.pid}) had ended already; the machine is recorded as gone from here`;
  }
  throw new DirtmapError(`the source's process (${record.pid}) has ended, and the machine's memory with it`, {
    code: "SOURCE_ENDED",
    attempted: `resume migration ${migration}`,
    remedy: `the machine runs at ${record.peer} or nowhere: look there`,
  });
}

/** Null: nobody listens. */
async function ask(path: string, decision: Decision): Promise<Answer | null> {
  const answered = new Promise<Answer | null>((resolve, reject) => {
    const socket = createConnection(path);
    let text = "";
    socket.setEncoding("utf8");
    socket.setTimeout(ANSWER_MS, () => socket.destroy());
    socket.on("connect", () => socket.write(`${decision}\n`));
    socket.on("data", (more: string) => {
      text += more;
      if (text.length > 8192) socket.destroy();
    });
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" || error.code === "ECONNREFUSED") resolve(null);
      else reject(error);
    });
    socket.on("close", () => {
      try {
        resolve(answerSchema.parse(JSON.parse(text)));
      } catch (cause) {
        reject(new DirtmapError("the source gave no answer", { code: "NO_ANSWER", cause }));
      }
    });
  });
  return await within(ANSWER_MS, "the source's answer", answered);
}
