/** A generator of pseudo-random numbers whose whole state is a seed: Marsaglia's xorshift32. */
export class Random {
  #state: number;

  /** @param seed any; numbers that agree in 32 bits give the same sequence */
  constructor(seed: number) {
    // Neighbouring seeds start far apart (the golden ratio, as Knuth's multiplicative hash has it); 0 is no state.
    this.#state = Math.imul(seed ^ 0x5bd1e995, 0x9e3779b1) | 1;
    for (let i = 0; i < 4; i++) this.#next();
  }

  /** 0 to bound - 1. */
  below(bound: number): number {
    return this.#next() % bound;
  }

  /** min to max, both included. */
  between(min: number, max: number): number {
    return min + this.below(max - min + 1);
  }

  /** True in `percent` of 100 cases. */
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  /** @throws RangeError of nothing */
  pick<T>(from: readonly T[]): T {
    if (from.length === 0) throw new RangeError("there is nothing to pick from");
    return from[this.below(from.length)];
  }

  /** One of the values, each as often as its weight says. */
  weighted<T>(choices: readonly (readonly [weight: number, value: T])[]): T {
    let at = this.below(choices.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, value] of choices) {
      if (at < weight) return value;
      at -= weight;
    }
    throw new RangeError("there is nothing to choose from");
  }

  #next(): number {
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state;
    return state >>> 0;
  }
}
