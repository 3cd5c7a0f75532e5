import { DirtmapError } from "../../errors.js";
import { ERRNO, errnoName, UapiError } from "../../uapi/errno.js";
import type { Caller } from "../client/connection.js";
import { closeFds, type Message, type MessageSocket } from "../message-socket.js";
import { replyProblem } from "../replies.js";

/** Ids of the commands here are below this one; those from it on are a DmaChannel's, on the same socket. */
export const IDS_BELOW = 0x8000;

/** Commands under way at a time: whoever sends more is not heard until some are answered. */
const MAX_UNDER_WAY = 4096;

/** How long a peer may take to answer a command of the proxy's own. */
const LIMIT_MS = 10_000;

/** Commands that were given up, and that the peer may still answer; one that owes more is not going to. */
const MAX_GIVEN_UP = 1024;

interface Waiting {
  readonly command: number;
  readonly since: number;
  /** When it counts as unanswered, by performance.now(). */
  readonly until: number;
  /** @param reply valid until this returns; null: none will come */
  answered(reply: Message | null): void;
}

/** An answer that is no error. */
export interface Answered {
  readonly payload: Uint8Array;
  /** They belong to whoever asked. */
  readonly fds: number[];
}

/**
 * The commands that were sent to one peer and are not answered yet: the proxy's own, and those that it passes on for others.
 * Each has an id of the proxy's choice, whatever id it came with, so that no two senders meet.
 */
export class UnderWay implements Caller {
  readonly socket: MessageSocket;
  readonly #peer: string;
  readonly #limitMs: number;
  readonly #waiting = new Map<number, Waiting>();
  /** Commands by their ids: see {@link giveUp}. */
  readonly #givenUp = new Map<number, number>();
  #id = 0;
  #failure: UapiError | undefined;
  /** What could not be sent to the peer: the connection is of no more use. */
  broken: unknown;

  /**
   * @param peer for messages
   * @param limitMs how long it may take to answer what is passed on; default: for ever, since who asked has a limit of its own
   */
  constructor(socket: MessageSocket, peer: string, limitMs = Number.POSITIVE_INFINITY) {
    this.socket = socket;
    this.#peer = peer;
    this.#limitMs = limitMs;
  }

  get failure(): UapiError | undefined {
    return this.#failure;
  }

  get count(): number {
    return this.#waiting.size;
  }

  get isFull(): boolean {
    return this.#waiting.size >= MAX_UNDER_WAY;
  }

  /**
   * Passes on a command as it came, and its descriptors with it; `answered` is called with the reply, if one is wanted. Does
   * not throw: see {@link broken}.
   * @param wantsReply true: even if whoever sent the command wants none
   */
  pass(message: Message, answered: (reply: Message | null) => void, wantsReply = !message.noReply): void {
    const id = this.#next();
    if (wantsReply) {
      const since = performance.now();
      this.#waiting.set(id, { command: message.command, since, until: since + this.#limitMs, answered });
    }
    this.send(() => this.socket.pass(message, id, wantsReply));
  }

  /** Sends something, if the connection is of any use. Does not throw: see {@link broken}. */
  send(sending: () => void): void {
    if (this.broken !== undefined) return;
    try {
      sending();
    } catch (error) {
      this.broken = error;
    }
  }

  /** A command of the proxy's own, as {@link Caller.call}: descriptors that come with the answer are closed. */
  async call(command: number, what: string, payload: Uint8Array | null, fds?: readonly number[]): Promise<Uint8Array> {
    const answer = await this.ask(command, what, payload, fds);
    closeFds(answer.fds);
    return answer.payload;
  }

  /**
   * The same, with the descriptors.
   * @param payload must not be changed until the reply has come: it is held against it
   */
  ask(command: number, what: string, payload: Uint8Array | null, fds?: readonly number[]): Promise<Answered> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const answered = (reply: Message | null) => {
        if (reply === null) reject(this.#failure ?? this.#refused(what, ERRNO.ETIMEDOUT));
        else if (reply.error !== 0) reject(this.#refused(what, reply.error));
        else {
          const problem = replyProblem(command, payload, reply.payload);
          if (problem === null) resolve({ payload: reply.payload.slice(), fds: reply.fds.splice(0) });
          else reject(this.#wrong(what, problem));
        }
      };
      const id = this.#next();
      const since = performance.now();
      this.#waiting.set(id, { command, since, until: since + Math.min(LIMIT_MS, this.#limitMs), answered });
      this.send(() => this.socket.sendCommand(command, id, payload, fds));
    });
  }

  /** A reply has come. @throws DirtmapError `PROTOCOL` for one to nothing, or to another command */
  take(reply: Message): void {
    const waiting = this.#waiting.get(reply.id);
    try {
      if (waiting === undefined && this.#givenUp.get(reply.id) === reply.command) {
        this.#givenUp.delete(reply.id);
        return;
      }
      if (waiting === undefined || waiting.command !== reply.command) {
        const what = `a reply to command ${reply.command} with id ${reply.id}, which nobody asked`;
        throw new DirtmapError(what, { code: "PROTOCOL" });
      }
      this.#waiting.delete(reply.id);
      waiting.answered(reply);
    } finally {
      closeFds(reply.fds);
    }
  }

  /** True if the peer has left a command unanswered for too long. */
  isLate(now: number): boolean {
    for (const { until } of this.#waiting.values()) if (now >= until) return true;
    return false;
  }

  /** Gives up what was sent before a moment: an answer that still comes is dropped. */
  giveUp(before: number): void {
    for (const [id, { command, since, answered }] of this.#waiting) {
      if (since >= before || this.#givenUp.size >= MAX_GIVEN_UP) continue;
      this.#waiting.delete(id);
      this.#givenUp.set(id, command);
      answered(null);
    }
  }

  /** The peer is gone: nothing more will be answered. */
  fail(error: UapiError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { answered } of waiting) answered(null);
  }

  #next(): number {
    do this.#id = (this.#id + 1) % IDS_BELOW;
    while (this.#waiting.has(this.#id) || this.#givenUp.has(this.#id));
    return this.#id;
  }

  #refused(what: string, error: number): UapiError {
    const code = error > 0 ? errnoName(error) : "EIO";
    return new UapiError(code, { syscall: what, attempted: `have ${this.#peer} do it` });
  }

  #wrong(what: string, problem: string): UapiError {
    const attempted = `understand the answer of ${this.#peer}: ${problem}`;
    return new UapiError("EPROTO", { syscall: what, attempted, remedy: "mend it, or use another" });
  }
}
