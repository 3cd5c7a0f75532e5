import { type DestinationEvent, type DestinationState, destinationStep } from "./handover.js";
import type { DestinationRecord, Journal } from "./journal.js";
import type { Peer } from "./peer.js";
import { problemOf } from "./source-handover.js";

/** Carries out what {@link destinationStep} says at the destination. */
export class DestinationHandover {
  #state: DestinationState = "loading";
  readonly #journal: Journal<DestinationRecord>;
  readonly #peer: Peer;
  /** Devices and vCPUs run when it resolves. */
  readonly #run: () => Promise<void>;
  #resumeMs = 0;
  /** `running` is on disk, or may be. */
  #runningRecorded = false;

  constructor(parts: { journal: Journal<DestinationRecord>; peer: Peer; run: () => Promise<void> }) {
    this.#journal = parts.journal;
    this.#peer = parts.peer;
    this.#run = parts.run;
  }

  get state(): DestinationState {
    return this.#state;
  }

  /** All is here and verified. @param rootDigest what READY says that memory holds */
  async ready(rootDigest: string | undefined): Promise<void> {
    await this.#happened("loaded", { rootDigest });
  }

  /**
   * GO has come: the machine runs when this resolves.
   * @throws where `running` could not be recorded (the state is `starting`), or where something failed while it was started
   */
  async go(): Promise<void> {
    await this.#happened("go");
  }

  /** Before GO: something went wrong. @throws where `running` may be on disk and can't be overwritten: nothing is said then */
  async fail(error: Error): Promise<void> {
    await this.#happened("failed", { error });
  }

  async #happened(
    event: DestinationEvent,
    facts: { rootDigest?: string | undefined; error?: Error } = {},
  ): Promise<void> {
    const { state, effects } = destinationStep(this.#state, event);
    this.#state = state;
    for (const effect of effects) {
      if (effect.do === "run") {
        const since = performance.now();
        await this.#run();
        this.#resumeMs = performance.now() - since;
      } else if (effect.do === "send") {
        await this.#say(effect.message, facts);
      } else if (state === "starting") {
        this.#runningRecorded = true;
        this.#journal.record(effect.state);
        await this.#happened("recorded");
      } else {
        this.#record(effect.state);
      }
    }
  }

  async #say(
    message: "READY" | "RUNNING" | "ABORT",
    { rootDigest, error }: { rootDigest?: string | undefined; error?: Error },
  ): Promise<void> {
    if (message === "READY") {
      await this.#peer.send({ type: "READY", ...(rootDigest === undefined ? {} : { rootDigest }) });
    } else if (message === "RUNNING") {
      // It runs, whether the source hears of it or not.
      this.#peer.send({ type: "RUNNING", resumeMs: this.#resumeMs }).catch(() => {});
    } else {
      this.#peer.send({ type: "ABORT", ...problemOf(error) }).catch(() => {});
    }
  }

  /**
   * Records `ready` or `discarded`. Both mean "never ran", as what is on disk does, so a failure changes nothing; unless
   * `running` may be there: then nothing may be said, and the source has to take this side's silence for what it is.
   */
  #record(state: DestinationRecord): void {
    try {
      this.#journal.record(state);
    } catch (error) {
      if (this.#runningRecorded) throw error;
    }
  }
}
