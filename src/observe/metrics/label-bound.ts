import { safeText } from "../../safe-text.js";

/** A label's values, bounded: Prometheus keeps a series for each one that it ever saw. */
export class LabelBound {
  readonly #max: number;
  readonly #known = new Set<string>();

  constructor(max: number) {
    this.#max = max;
  }

  /** The value, shortened; or `(other)` once there are too many. */
  label(value: string): string {
    const short = safeText(value, MAX_LENGTH);
    if (this.#known.has(short)) return short;
    if (this.#known.size >= this.#max) return OTHER;
    this.#known.add(short);
    return short;
  }
}

const MAX_LENGTH = 128;
const OTHER = "(other)";
