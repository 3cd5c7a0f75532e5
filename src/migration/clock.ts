import { type MigrationPhase, publish } from "./events.js";

/** Which phase a migration is in, since when, and how long those before took. Publishes each change. */
export class PhaseClock {
  readonly #started = performance.now();
  readonly #phases: { phase: MigrationPhase; since: number }[] = [];
  #ended: number | undefined;

  /** Milliseconds since the migration began. */
  get elapsedMs(): number {
    return (this.#ended ?? performance.now()) - this.#started;
  }

  get phase(): MigrationPhase | undefined {
    return this.#phases.at(-1)?.phase;
  }

  enter(phase: MigrationPhase, text?: string): void {
    this.#phases.push({ phase, since: performance.now() });
    publish({ type: "phase", phase, atMs: this.elapsedMs, ...(text === undefined ? {} : { text }) });
  }

  /** The migration is over: publishes how, and stops the clock. */
  end(result: MigrationPhase, text?: string): void {
    this.#ended = performance.now();
    publish({ type: "phase", phase: result, atMs: this.elapsedMs, ...(text === undefined ? {} : { text }) });
  }

  /** Milliseconds per phase, in order. */
  phases(): { phase: MigrationPhase; ms: number }[] {
    const end = this.#ended ?? performance.now();
    return this.#phases.map(({ phase, since }, i) => ({
      phase,
      ms: round((this.#phases[i + 1]?.since ?? end) - since),
    }));
  }
}

/** To a thousandth: microseconds are what these clocks resolve. */
export function round(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
