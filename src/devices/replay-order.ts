import type { ReplaySchedule } from "../host/replay-schedule.js";
import type { PageNumber } from "../memory/address.js";
import type { PageSpan, SlotOrder, StampPlaces } from "./buffers.js";

/**
 * The order of a replayed device's writes: a slot for each distinct page, sorted by address; the nth write goes where the
 * trace has it, and after the last one the trace begins anew.
 */
export class ReplayOrder implements SlotOrder {
  readonly slots: number;
  readonly spans: readonly PageSpan[] = [];
  readonly blockSlots = 1;
  /** By slot. */
  readonly #pages: Uint32Array<ArrayBuffer>;
  /** Slot of each write of one run through the trace. */
  readonly #slotOf: Uint32Array<ArrayBuffer>;

  constructor({ pages }: ReplaySchedule) {
    const sorted = Uint32Array.from(pages).sort();
    let distinct = 0;
    for (let i = 0; i < sorted.length; i++) {
      if (i === 0 || sorted[i] !== sorted[i - 1]) sorted[distinct++] = sorted[i];
    }
    this.#pages = sorted.slice(0, distinct);
    this.slots = distinct;
    const slots = new Map<PageNumber, number>();
    this.#pages.forEach((page, slot) => {
      slots.set(page, slot);
    });
    this.#slotOf = Uint32Array.from(pages, (page) => slots.get(page) ?? 0);
  }

  /** Writes in one run through the trace. */
  get writes(): number {
    return this.#slotOf.length;
  }

  slotOf(sequence: number): number {
    return this.#slotOf[(sequence - 1) % this.#slotOf.length];
  }

  pageOf(slot: number): PageNumber {
    return this.#pages[slot];
  }

  blockOf(slot: number): PageSpan[] {
    return [{ firstPage: this.#pages[slot], pages: 1 }];
  }

  /** What each slot holds is the last run through the trace, backwards. O(writes of the trace). */
  places(lastSequence: number): StampPlaces {
    const sequences = new Float64Array(this.slots);
    const from = Math.max(1, lastSequence - this.writes + 1);
    for (let sequence = from; sequence <= lastSequence; sequence++) sequences[this.slotOf(sequence)] = sequence;
    return { pages: this.#pages, sequences };
  }
}

/**
 * When writes are due: evenly within the interval in which the trace has them. Pure.
 */
export class ReplayTimes {
  readonly #writes: Uint32Array;
  readonly #endsUs: Float64Array;

  constructor({ writes, endsUs }: ReplaySchedule) {
    this.#writes = writes;
    this.#endsUs = endsUs;
  }

  /** Microseconds of one run through the trace. */
  get lengthUs(): number {
    return this.#endsUs.at(-1) ?? 0;
  }

  /** How many writes, over all runs, are due after `us`. */
  dueAfter(us: number): number {
    const all = this.#writes.at(-1) ?? 0;
    const runs = Math.floor(us / this.lengthUs);
    const rest = us - runs * this.lengthUs;
    const interval = firstAbove(this.#endsUs, rest);
    const [fromUs, toUs] = [this.#endsUs[interval - 1] ?? 0, this.#endsUs[interval] ?? this.lengthUs];
    const [from, to] = [this.#writes[interval - 1] ?? 0, this.#writes[interval] ?? all];
    const share = toUs > fromUs ? (rest - fromUs) / (toUs - fromUs) : 1;
    return runs * all + from + Math.floor((to - from) * share);
  }

  /** Microseconds after which the given number of writes was due. */
  timeOf(writes: number): number {
    const all = this.#writes.at(-1) ?? 0;
    const runs = Math.floor(writes / all);
    const rest = writes - runs * all;
    const interval = firstAbove(this.#writes, rest);
    const [from, to] = [this.#writes[interval - 1] ?? 0, this.#writes[interval] ?? all];
    const [fromUs, toUs] = [this.#endsUs[interval - 1] ?? 0, this.#endsUs[interval] ?? this.lengthUs];
    return runs * this.lengthUs + fromUs + (to > from ? ((toUs - fromUs) * (rest - from)) / (to - from) : 0);
  }
}

/** The first index whose value is above `value`; the length where there is none. */
function firstAbove(sorted: Uint32Array | Float64Array, value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle] > value) high = middle;
    else low = middle + 1;
  }
  return low;
}
