import { WARNING_TEMPERATURE } from "./identity.js";
import { MAX_IO_QUEUES, VECTORS } from "./limits.js";
import { FEATURE, STATUS } from "./spec.js";

/** Set Features, dword 10: the value is to be kept over a reset. */
const SAVE = 0x8000_0000;
/** Get Features, dword 10: current, default, saved … which only a controller that can save tells apart. */
const SELECT = 0x700;

const DEFAULTS: ReadonlyMap<number, number> = new Map([
  [FEATURE.ARBITRATION, 0],
  [FEATURE.POWER_MANAGEMENT, 0],
  [FEATURE.TEMPERATURE_THRESHOLD, WARNING_TEMPERATURE],
  [FEATURE.ERROR_RECOVERY, 0],
  [FEATURE.VOLATILE_WRITE_CACHE, 1],
  [FEATURE.NUMBER_OF_QUEUES, ((MAX_IO_QUEUES - 1) << 16) | (MAX_IO_QUEUES - 1)],
  [FEATURE.INTERRUPT_COALESCING, 0],
  [FEATURE.WRITE_ATOMICITY, 0],
  [FEATURE.ASYNC_EVENT, 0],
]);

/** Dwords that a state holds: the features in their order, then each vector's configuration. */
export const FEATURE_DWORDS = DEFAULTS.size + VECTORS;

/** A feature's value, or a status. */
export type FeatureAnswer = { readonly status: number; readonly value: number };

/** The features' values (5.21.1). What they mean is up to who reads them: arbitration and coalescing are hints. */
export class Features {
  readonly #values = new Map(DEFAULTS);
  /** Per vector: bit 16 is Coalescing Disable. */
  readonly #vectors = new Uint32Array(VECTORS);

  /** Writes go to the file's cache, and are durable after a Flush. */
  get writeCache(): boolean {
    return ((this.#values.get(FEATURE.VOLATILE_WRITE_CACHE) ?? 0) & 1) !== 0;
  }

  get(dword10: number, dword11: number): FeatureAnswer {
    const id = dword10 & 0xff;
    if ((dword10 & SELECT) !== 0) return { status: STATUS.INVALID_FIELD, value: 0 };
    if (id === FEATURE.INTERRUPT_VECTOR) {
      const vector = dword11 & 0xffff;
      if (vector >= VECTORS) return { status: STATUS.INVALID_FIELD, value: 0 };
      return { status: STATUS.SUCCESS, value: vector | this.#vectors[vector] };
    }
    // Thresholds under which it would be too cold, and those of sensors that it hasn't, are off.
    if (id === FEATURE.TEMPERATURE_THRESHOLD && dword11 >>> 16 !== 0) return { status: STATUS.SUCCESS, value: 0 };
    const value = this.#values.get(id);
    return value === undefined ? { status: STATUS.INVALID_FIELD, value: 0 } : { status: STATUS.SUCCESS, value };
  }

  /** @param queuesExist I/O queues were created: their number can't change any more */
  set(dword10: number, dword11: number, queuesExist: boolean): FeatureAnswer {
    const id = dword10 & 0xff;
    const answer = (status: number, value = 0): FeatureAnswer => ({ status, value });
    if ((dword10 & SAVE) !== 0) return answer(STATUS.FEATURE_NOT_SAVEABLE);
    switch (id) {
      case FEATURE.NUMBER_OF_QUEUES: {
        const submission = dword11 & 0xffff;
        const completion = dword11 >>> 16;
        if (submission === 0xffff || completion === 0xffff) return answer(STATUS.INVALID_FIELD);
        if (queuesExist) return answer(STATUS.COMMAND_SEQUENCE_ERROR);
        // All are allocated, whatever is asked for: more is allowed.
        return answer(STATUS.SUCCESS, this.#values.get(id));
      }
      case FEATURE.INTERRUPT_VECTOR: {
        const vector = dword11 & 0xffff;
        if (vector >= VECTORS) return answer(STATUS.INVALID_FIELD);
        this.#vectors[vector] = dword11 & 0x1_0000;
        return answer(STATUS.SUCCESS);
      }
      case FEATURE.POWER_MANAGEMENT:
        // There is power state 0 alone.
        if ((dword11 & 0x1f) !== 0) return answer(STATUS.INVALID_FIELD);
        this.#values.set(id, dword11);
        return answer(STATUS.SUCCESS);
      case FEATURE.TEMPERATURE_THRESHOLD:
        if (dword11 >>> 16 === 0) this.#values.set(id, dword11);
        return answer(STATUS.SUCCESS);
      default:
        if (!this.#values.has(id)) return answer(STATUS.INVALID_FIELD);
        this.#values.set(id, dword11);
        return answer(STATUS.SUCCESS);
    }
  }

  reset(): void {
    for (const [id, value] of DEFAULTS) this.#values.set(id, value);
    this.#vectors.fill(0);
  }

  save(): Uint32Array {
    return Uint32Array.from([...this.#values.values(), ...this.#vectors]);
  }

  load(dwords: Uint32Array): void {
    for (const [i, id] of [...DEFAULTS.keys()].entries()) this.#values.set(id, dwords[i]);
    this.#vectors.set(dwords.subarray(DEFAULTS.size));
  }
}
