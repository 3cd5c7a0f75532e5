import { setTimeout as sleep } from "node:timers/promises";
import { DirtmapError, explain } from "../errors.js";
import type { Timeouts } from "./deadline.js";
import type { Decision } from "./decision.js";
import { DeviceError } from "./device-error.js";
import { type SourceEvent, type SourceState, sourceStep } from "./handover.js";
import type { Journal, SourceRecord } from "./journal.js";
import { type Peer, PeerAborted, UNTIL_LOST } from "./peer.js";
import type { ControlMessageOf, Problem } from "./stream/messages.js";

/** RUNNING, and when it arrived, by performance.now(). */
export type Confirmation = ControlMessageOf<"RUNNING"> & { readonly at: number };

/** How the handover ended, as far as the source can know. */
export type HandoverOutcome =
  | { readonly state: "gone"; readonly running: Confirmation | null }
  | { readonly state: "taken-back"; readonly why: Error }
  | { readonly state: "undecided"; readonly why: Error };

/** What GO was answered, as an event. */
interface Answer {
  readonly event: SourceEvent;
  readonly error: Error;
  readonly running: Confirmation | null;
}

/** Carries out what {@link sourceStep} says at the source. */
export class SourceHandover {
  #state: SourceState = "preparing";
  readonly #journal: Journal<SourceRecord>;
  readonly #peer: Peer;
  readonly #timeouts: Timeouts;
  /** Devices and vCPUs run again when it resolves, but for what it returns: problems that have been warned of. */
  readonly #takeBack: () => Promise<readonly string[]>;
  #problems: readonly string[] = [];
  readonly #warn: (text: string) => void;
  /** Resolves when the machine is gone, or has been taken back and runs. */
  readonly #ended: Promise<HandoverOutcome>;
  #end: (outcome: HandoverOutcome) => void = () => {};
  /** Resolves when the time for an answer to GO is over, whatever came. */
  readonly #answered: Promise<void>;
  #noLongerWaiting: () => void = () => {};

  constructor(parts: {
    journal: Journal<SourceRecord>;
    peer: Peer;
    timeouts: Timeouts;
    takeBack: () => Promise<readonly string[]>;
    warn: (text: string) => void;
  }) {
    this.#journal = parts.journal;
    this.#peer = parts.peer;
    this.#timeouts = parts.timeouts;
    this.#takeBack = parts.takeBack;
    this.#warn = parts.warn;
    this.#ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#answered = new Promise((resolve) => {
      this.#noLongerWaiting = resolve;
    });
  }

  get state(): SourceState {
    return this.#state;
  }

  /** Before GO: something went wrong, or the operator cancelled. The source's machine runs again. */
  async fail(error: Error): Promise<void> {
    await this.#happened("failed", error);
  }

  /**
   * READY has arrived: gives up, says GO and waits for RUNNING. Giving up is the point of no return: from there on the
   * source's machine runs again only if the destination says that it has discarded its own, or if the operator says so.
   * @param signal heeded before giving up
   * @param givenUp is called when the machine is given up and GO is said
   * @param undecided is called with the reason when GO is not confirmed, before the operator is waited for
   * @param decideMs how long the operator is waited for; Infinity: until told
   */
  async handOver({
    signal,
    decideMs,
    givenUp,
    undecided,
  }: {
    signal: AbortSignal;
    decideMs: number;
    givenUp: () => void;
    undecided: (why: Error) => Promise<void>;
  }): Promise<HandoverOutcome> {
    signal.throwIfAborted();
    const ready = await this.#happened("ready");
    if (ready !== null) return ready;
    givenUp();

    const stop = new AbortController();
    try {
      const answer = await Promise.race([this.#answer(this.#timeouts.runningMs, stop.signal), this.#ended]);
      if ("state" in answer) return answer;
      const outcome = await this.#happened(answer.event, answer.error, answer.running);
      if (outcome !== null) return outcome;

      const why = answer.error;
      await undecided(why);
      const decided = await Promise.race([this.#ended, this.#listen(stop.signal), after(decideMs, stop.signal)]);
      return decided ?? { state: "undecided", why };
    } finally {
      stop.abort();
    }
  }

  /**
   * The operator's word, at any time. Returns what came of it, as a sentence, once it is recorded and done.
   * @throws DirtmapError `NOT_UNDECIDED` where there is nothing to decide, `DECIDED` where it is decided otherwise
   */
  async decide(decision: Decision): Promise<string> {
    // The destination may be starting the machine at this moment: its answer tells, or its silence.
    if (decision === "resume" && this.#state === "waiting") await this.#answered;
    if (this.#state === "preparing" || this.#state === "giving-up") {
      throw new DirtmapError("the source has not given the machine up, and runs it: there is nothing to decide", {
        code: "NOT_UNDECIDED",
        remedy: `to cancel the migration, interrupt its process: \`kill -INT ${process.pid}\``,
      });
    }
    const because = new DirtmapError(`GO was not confirmed, and the operator decided: ${decision}`, {
      code: "GO_NOT_CONFIRMED",
    });
    const outcome = await this.#happened(decision, because);
    if (outcome?.state === "gone") {
      if (decision === "abort") return "the source's machine is given up; the migration's process ends";
      throw new DirtmapError(
        "the source's machine is given up for good: the destination runs it, or `abort` was said",
        {
          code: "DECIDED",
        },
      );
    }
    if (decision === "resume") {
      return this.#problems.length === 0
        ? "the source's machine runs again"
        : `the source has taken its machine back, but ${this.#problems.join("; ")}`;
    }
    throw new DirtmapError(
      "the source's machine runs again: the destination has discarded its own, or `resume` was said",
      {
        code: "DECIDED",
        remedy: "to end it, end its process",
      },
    );
  }

  /** Takes what the destination says late. Resolves when that ends the doubt; never, once the connection is lost. */
  async #listen(stop: AbortSignal): Promise<HandoverOutcome> {
    while (!stop.aborted) {
      const late = await this.#answer(UNTIL_LOST, stop);
      if (stop.aborted) break;
      const outcome = await this.#happened(late.event, late.error, late.running);
      if (outcome !== null) return outcome;
      // The connection is lost: only the operator can tell now.
      if (this.#peer.lost.aborted) break;
    }
    return await new Promise(() => {});
  }

  /** What the destination says to GO. */
  async #answer(ms: number, signal: AbortSignal): Promise<Answer> {
    try {
      const message = await this.#peer.expect(["RUNNING", "RUN_FAILED"], ms, signal);
      if (message.type === "RUNNING")
        return { event: "running", error: new Error("it runs"), running: { ...message, at: performance.now() } };
      // It may have run for a moment, so this is no ground for taking the machine back without asking.
      const error = new DirtmapError(`the destination could not run the machine: ${message.message}`, {
        code: message.code,
        remedy: message.remedy,
      });
      return { event: "silence", error, running: null };
    } catch (error) {
      const event = error instanceof PeerAborted ? "discarded" : "silence";
      return { event, error: error instanceof Error ? error : new Error(String(error)), running: null };
    }
  }

  /**
   * Only `given-up` has to be on disk before anything else happens. If `gone` or `running` can't be written, what is
   * there (`given-up`, or `running` already) keeps this side from running after a crash, or allows what was allowed.
   * False: the operator's `abort` is on disk already, recorded by another process, and binds.
   */
  #recordAfterwards(state: SourceRecord): boolean {
    try {
      this.#journal.record(state);
    } catch (error) {
      if (error instanceof DirtmapError && error.code === "DECIDED") return false;
      this.#warn(`the journal could not be brought up to '${state}': ${explain(error)}`);
    }
    return true;
  }

  /** What keeps the machine from running again as it was is a warning: it is this side's again all the same. */
  async #takeBackAll(): Promise<void> {
    try {
      this.#problems = await this.#takeBack();
    } catch (error) {
      this.#problems = [`the machine could not be taken back: ${explain(error)}`];
      for (const problem of this.#problems) this.#warn(problem);
    }
  }

  /** Returns the outcome once there is one, which the first event that leads to it decides. */
  async #happened(
    event: SourceEvent,
    error: Error = new Error(event),
    running: Confirmation | null = null,
  ): Promise<HandoverOutcome | null> {
    if (this.#state === "gone" || this.#state === "taken-back") return await this.#ended;
    const { state, effects } = sourceStep(this.#state, event);
    if (this.#state === "waiting" && state !== "waiting") this.#noLongerWaiting();
    this.#state = state;
    for (const effect of effects) {
      if (effect.do === "send") {
        // Not waited for: a message that can't be sent is as good as lost, and the time-outs of both sides deal with that.
        this.#peer
          .send(effect.message === "GO" ? { type: "GO" } : { type: "ABORT", ...problemOf(error) })
          .catch(() => {});
      } else if (effect.do === "take-back") {
        await this.#takeBackAll();
      } else if (state === "giving-up") {
        try {
          this.#journal.record(effect.state);
        } catch (cause) {
          const failed = new DirtmapError(`the journal can't be written: ${explain(cause)}`, {
            code: "JOURNAL",
            cause,
          });
          return await this.#happened("failed", failed);
        }
        return await this.#happened("recorded");
      } else if (!this.#recordAfterwards(effect.state)) {
        this.#state = "gone";
        break;
      }
    }
    if (this.#state === "gone") this.#end({ state: "gone", running });
    else if (this.#state === "taken-back") this.#end({ state: "taken-back", why: error });
    else return null;
    return await this.#ended;
  }
}

/** Resolves with null when the time is over; any time, unlike a timer's. @throws AbortError on `stop` */
async function after(ms: number, stop: AbortSignal): Promise<null> {
  const until = performance.now() + ms;
  for (let left = ms; left > 0; left = until - performance.now()) {
    await sleep(Math.min(left, UNTIL_LOST), undefined, { signal: stop });
  }
  return null;
}

/** An error as ABORT, REFUSE and RUN_FAILED carry it. */
export function problemOf(error: unknown): Problem {
  const limit = (text: string) => text.slice(0, 4096);
  if (error instanceof DirtmapError) {
    const { code, message, remedy } = error;
    return {
      code: code.slice(0, 64),
      message: limit(message),
      ...(remedy === undefined ? {} : { remedy: limit(remedy) }),
      ...(error instanceof DeviceError ? { device: { id: error.device, reason: error.reason } } : {}),
    };
  }
  return { code: "INTERNAL", message: limit(explain(error)) };
}
