import type { Sample } from "./sample.js";

/*
 * When a migration counts as stalled: the rule of docs/watching.md, and nothing else.
 *
 * - It does not converge: a pass has more to send than `1 - improvement` times what a pass had that was `passes` or more before
 *   it. How long a pass takes does not matter, so a slow link alone is no stall.
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
  /** What passes had to send, the oldest first; of several that were too short to be seen one by one, on average. */
  #passes: { readonly last: number; readonly bytes: number }[] = [];
  #shrinks = true;
  #last: Sample | undefined;
  /** When something moved for the last time. */
  #movedAtMs = 0;

  constructor(limits: StallLimits = STALL_LIMITS) {
    this.#limits = limits;
  }

  /** What the newest pass had to send; null: none has begun while it was watched. */
  get passBytes(): number | null {
    return this.#passes.at(-1)?.bytes ?? null;
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
    return this.#shrinks ? null : "does-not-converge";
  }

  /** One pass has begun since the last sample, or several. */
  #begin(sample: Sample, last: Sample): void {
    const { passes, improvement } = this.#limits;
    const dirtied = sample.memoryBytes + sample.handledBytes - last.memoryBytes - last.handledBytes;
    const bytes = Math.max(0, dirtied / (sample.pass - last.pass));
    // The newest that is old enough; none behind it will be needed again.
    const before = this.#passes.findLastIndex((each) => each.last <= last.pass + 1 - passes);
    this.#shrinks = before < 0 || bytes <= this.#passes[before].bytes * (1 - improvement);
    this.#passes = [...this.#passes.slice(Math.max(0, before)), { last: sample.pass, bytes }];
  }
}
