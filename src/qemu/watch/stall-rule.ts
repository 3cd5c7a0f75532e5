import type { Sample } from "./sample.js";

/*
 * When a migration counts as stalled: the rule of docs/watching.md, and nothing else.
 *
 * - It does not converge: a pass has more to send than `1 - improvement` times what the pass `passes` passes before it had. How
 *   long a pass takes does not matter, so a slow link alone is no stall.
 * - Nothing moves: for `silenceMs`, QEMU has sent no byte and taken no page off its list.
 *
 * What a pass has to send is what was dirtied since the pass before began. That is how much the sum of what is left and what has
 * been handled has grown, so it does not matter at which moment of a pass QEMU is asked.
 */

export interface StallLimits {
  /** Passes over which the work of a pass must shrink. */
  readonly passes: number;
  /** By which share of it at least: 0.1 is a tenth. */
  readonly improvement: number;
  /** How long nothing may move. */
  readonly silenceMs: number;
}

export const STALL_LIMITS: StallLimits = { passes: 4, improvement: 0.1, silenceMs: 30_000 };

/** What stands still; null: nothing does. */
export type Stall = "does-not-converge" | "nothing-moves" | null;

/** Judges a migration's samples, in the order in which they come. */
export class StallRule {
  readonly #limits: StallLimits;
  /** What each of the last passes had to send, the oldest first; bytes. */
  readonly #work: number[] = [];
  #last: Sample | undefined;
  /** When something moved for the last time. */
  #movedAtMs = 0;

  constructor(limits: StallLimits = STALL_LIMITS) {
    this.#limits = limits;
  }

  /** What the newest pass had to send; null: none has begun while it was watched. */
  get passBytes(): number | null {
    return this.#work.at(-1) ?? null;
  }

  /** @param sample of a migration whose guest runs */
  judge(sample: Sample): Stall {
    const last = this.#last;
    this.#last = sample;
    if (last === undefined || sample.sentBytes !== last.sentBytes || sample.handledBytes !== last.handledBytes) {
      this.#movedAtMs = sample.atMs;
    }
    if (last !== undefined && sample.pass > last.pass) this.#begin(sample, last);
    if (sample.atMs - this.#movedAtMs >= this.#limits.silenceMs) return "nothing-moves";
    return this.#shrinks() ? null : "does-not-converge";
  }

  /** One pass has begun since the last sample, or several that were too short to be seen, which share what they had. */
  #begin(sample: Sample, last: Sample): void {
    const dirtied = sample.memoryBytes + sample.handledBytes - last.memoryBytes - last.handledBytes;
    const begun = sample.pass - last.pass;
    const { passes } = this.#limits;
    for (let i = 0; i < Math.min(begun, passes + 1); i++) this.#work.push(Math.max(0, dirtied / begun));
    this.#work.splice(0, Math.max(0, this.#work.length - passes - 1));
  }

  #shrinks(): boolean {
    const { passes, improvement } = this.#limits;
    if (this.#work.length <= passes) return true;
    return this.#work[passes] <= this.#work[0] * (1 - improvement);
  }
}
