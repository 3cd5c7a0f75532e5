import { setTimeout as pause } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type BitmapAllocation, bitmapAllocations } from "../../bitmap/allocations.js";
import type { BitmapMemory } from "./result.js";

interface Taken {
  readonly holder: WeakRef<object>;
  readonly side: keyof BitmapMemory;
  readonly bytes: number;
}

/**
 * Follows all memory for dirty bits from its making on: on which side it was made, and whether it is still held. That is
 * found out by collecting garbage, so it takes some milliseconds.
 */
export class BitmapMeter implements Disposable {
  readonly #taken: Taken[] = [];
  readonly #isInside: () => boolean;
  readonly #note = (message: unknown) => {
    const { holder, kind, bytes } = message as BitmapAllocation;
    const side = kind === "log" ? "logs" : this.#isInside() ? "kernel" : "reader";
    this.#taken.push({ holder: new WeakRef(holder), side, bytes });
  };

  /** @param isInside whether the code that runs is the kernel's */
  constructor(isInside: () => boolean) {
    this.#isInside = isInside;
    bitmapAllocations.subscribe(this.#note);
  }

  /** What was taken since the beginning, or since the last time this was asked, held or not. */
  takenSince(mark: number): BitmapMemory {
    return sum(this.#taken.slice(mark));
  }

  /** A place in time, for {@link takenSince}. */
  get mark(): number {
    return this.#taken.length;
  }

  /** What is held. */
  async held(): Promise<BitmapMemory> {
    for (let before = Number.NaN; ; ) {
      // What a WeakRef was made for, or asked for, is kept until the turn of the event loop ends; and what a promise has just
      // answered may be kept by a frame that is gone a turn later.
      await pause(0);
      collectGarbage();
      const alive = this.#taken.filter(({ holder }) => holder.deref() !== undefined);
      if (alive.length === before) return sum(alive);
      before = alive.length;
    }
  }

  [Symbol.dispose](): void {
    bitmapAllocations.unsubscribe(this.#note);
  }
}

function sum(taken: readonly Taken[]): BitmapMemory {
  const bytes = (side: keyof BitmapMemory) =>
    taken.reduce((total, each) => total + (each.side === side ? each.bytes : 0), 0);
  return { logs: bytes("logs"), kernel: bytes("kernel"), reader: bytes("reader") };
}

let collect: (() => void) | undefined;

/** Collects all garbage, now. */
export function collectGarbage(): void {
  if (collect === undefined) {
    setFlagsFromString("--expose-gc");
    collect = runInNewContext("gc") as () => void;
  }
  collect();
}
