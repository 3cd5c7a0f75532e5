import { DirtmapError, explain } from "../errors.js";
import type { Timeouts } from "./deadline.js";
import { type Decided, DecisionListener } from "./decision.js";
import { DeviceError } from "./device-error.js";
import { type SourceEvent, type SourceState, sourceStep } from "./handover.js";
import type { Journal, SourceRecord } from "./journal.js";
import { type Peer, PeerAborted } from "./peer.js";
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
  /** Devices and vCPUs run again when it resolves. */
  readonly #takeBack: () => Promise<void>;
  readonly #warn: (text: string) => void;

  constructor(parts: {
    journal: Journal<SourceRecord>;
    peer: Peer;
    timeouts: Timeouts;
    takeBack: () => Promise<void>;
    warn: (text: string) => void;
  }) {
    this.#journal = parts.journal;
    this.#peer = parts.peer;
    this.#timeouts = parts.timeouts;
    this.#takeBack = parts.takeBack;
    this.#warn = parts.warn;
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
   * @param undecided is called with the reason when GO is not confirmed, before the operator is waited for
   * @param decideMs how long the operator is waited for
   */
  async handOver(args: {
    /** Heeded before giving up. */
    signal: AbortSignal;
    /** Ends the wait for the operator. */
    cancel: AbortSignal | undefined;
    decideMs: number;
    directory: string;
    migration: string;
    undecided: (why: Error) => Promise<void>;
  }): Promise<HandoverOutcome> {
    args.signal.throwIfAborted();
    const ready = await this.#happened("ready");
    if (ready !== null) return ready;

    const answer = await this.#answer(this.#timeouts.runningMs);
    const outcome = await this.#happened(answer.event, answer.error, answer.running);
    if (outcome !== null) return outcome;

    const why = answer.error;
    await args.undecided(why);
    return await this.#decide(why, args);
  }

  /** Waits for whatever ends the doubt: a late answer of the destination, or the operator. */
  async #decide(
    why: Error,
    {
      cancel,
      decideMs,
      directory,
      migration,
    }: { cancel: AbortSignal | undefined; decideMs: number; directory: string; migration: string },
  ): Promise<HandoverOutcome> {
    await using listener = await DecisionListener.open(directory, migration);
    const until = Date.now() + decideMs;
    const stop = new AbortController();
    const gaveUpWaiting = new Promise<"nobody">((resolve) => {
      const timer = Number.isFinite(decideMs) ? setTimeout(() => resolve("nobody"), decideMs) : undefined;
      const onAbort = () => resolve("nobody");
      if (cancel?.aborted === true) onAbort();
      cancel?.addEventListener("abort", onAbort, { once: true });
      stop.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        cancel?.removeEventListener("abort", onAbort);
      });
    });
    try {
      let late = this.#lateAnswer(stop.signal);
      while (Date.now() < until) {
        const first = await Promise.race([late, listener.decided, gaveUpWaiting]);
        if (first === "nobody") break;
        if ("decision" in first) return await this.#decided(first, why);
        const outcome = await this.#happened(first.event, first.error, first.running);
        if (outcome !== null) return outcome;
        // The connection is lost: only the operator can tell now.
        late = new Promise(() => {});
      }
      return { state: "undecided", why };
    } finally {
      stop.abort();
    }
  }

  async #decided({ decision, answer }: Decided, why: Error): Promise<HandoverOutcome> {
    try {
      const because = new DirtmapError(`GO was not confirmed, and the operator decided: ${decision}`, {
        code: "GO_NOT_CONFIRMED",
        cause: why,
      });
      const outcome = await this.#happened(decision, because);
      if (outcome === null)
        throw new DirtmapError("the source does not wait for a decision", { code: "NOT_UNDECIDED" });
      const message =
        decision === "resume"
          ? "the source's machine runs again"
          : "the source's machine is given up; the migration's process ends";
      answer({ done: true, message });
      return outcome;
    } catch (error) {
      answer({ done: false, message: explain(error) });
      throw error;
    }
  }

  async #lateAnswer(stop: AbortSignal): Promise<Answer> {
    for (;;) {
      const answer = await this.#answer(this.#timeouts.peerMs, stop);
      if (answer.event !== "silence" || this.#peer.lost.aborted || stop.aborted) return answer;
    }
  }

  /** What the destination says to GO. */
  async #answer(ms: number, signal?: AbortSignal): Promise<Answer> {
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
   */
  #recordAfterwards(state: SourceRecord): void {
    try {
      this.#journal.record(state);
    } catch (error) {
      this.#warn(`the journal could not be brought up to '${state}': ${explain(error)}`);
    }
  }

  /** Returns the outcome once there is one. */
  async #happened(
    event: SourceEvent,
    error: Error = new Error(event),
    running: Confirmation | null = null,
  ): Promise<HandoverOutcome | null> {
    const { state, effects } = sourceStep(this.#state, event);
    this.#state = state;
    for (const effect of effects) {
      if (effect.do === "send") {
        // Not waited for: a message that can't be sent is as good as lost, and the time-outs of both sides deal with that.
        this.#peer
          .send(effect.message === "GO" ? { type: "GO" } : { type: "ABORT", ...problemOf(error) })
          .catch(() => {});
      } else if (effect.do === "take-back") {
        await this.#takeBack();
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
      } else {
        this.#recordAfterwards(effect.state);
      }
    }
    if (this.#state === "gone") return { state: "gone", running };
    if (this.#state === "taken-back") return { state: "taken-back", why: error };
    return null;
  }
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
