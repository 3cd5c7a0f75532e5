import { UapiError } from "../uapi/errno.js";
import type { DeviceModel } from "./model.js";

/** Told of a device's failures by {@link Containment}. */
export interface FailureListener {
  /**
   * The device has failed. Called once, until it is revived.
   * @param guestSees its registers show it, and its guest can reset it; false: only its host can
   */
  failed(reason: string, guestSees: boolean): void;
  /** The device was reset, by its guest or its host. */
  revived(): void;
}

/**
 * A model as its guest reaches it: registers, and the work that they ask for.
 *
 * Nothing that a guest does makes a call here throw, or keeps its device failed for good. A model that throws has a bug:
 * it has failed, does no more work, and says so in its registers. A reset by its guest revives it, as with a real device.
 * A model that can't show a failure ({@link DeviceModel.showFailure}) is its host's to reset.
 */
export class Containment {
  readonly #model: DeviceModel;
  readonly #listener: FailureListener;
  #failure: string | undefined;

  constructor(model: DeviceModel, listener: FailureListener) {
    this.#model = model;
    this.#listener = listener;
  }

  /** Why the device can't go on; undefined while it can. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /** {@link DeviceModel.run}; infinity for a device that has failed. */
  run(budgetMs: number): number {
    if (this.#failure !== undefined) return Number.POSITIVE_INFINITY;
    try {
      return this.#model.run(budgetMs);
    } catch (error) {
      this.fail(reasonOf(error));
      return Number.POSITIVE_INFINITY;
    }
  }

  /** {@link DeviceModel.regionRead}; all ones where that fails, as from a device that does not answer on the bus. */
  regionRead(region: number, offset: number, target: Uint8Array): void {
    try {
      this.#model.regionRead(region, offset, target);
    } catch (error) {
      target.fill(0xff);
      this.#failAccess(error, `read ${target.byteLength} bytes at ${offset} of region ${region}`);
    }
  }

  /** {@link DeviceModel.regionWrite}. */
  regionWrite(region: number, offset: number, source: Uint8Array): void {
    try {
      this.#model.regionWrite(region, offset, source);
    } catch (error) {
      this.#failAccess(error, `write ${source.byteLength} bytes at ${offset} of region ${region}`);
    }
    this.#look();
  }

  /** {@link DeviceModel.reset}, by the host. */
  reset(): void {
    this.#model.reset();
    this.#revive();
  }

  /** The device can't go on: see DeviceContext.fail. */
  fail(reason: string): void {
    if (this.#failure !== undefined) return;
    this.#failure = reason;
    try {
      this.#model.quiesce();
      this.#model.showFailure?.();
    } catch (error) {
      this.#failure = `${reason}; then ${reasonOf(error)}`;
    }
    this.#listener.failed(this.#failure, this.#model.hasFailed !== undefined);
    // Where its guest asked for a reset meanwhile, the failure is over already.
    this.#look();
  }

  /** @throws UapiError EIO where its guest could not see otherwise that something is wrong */
  #failAccess(error: unknown, attempted: string): void {
    this.fail(reasonOf(error));
    if (this.#model.hasFailed !== undefined) return;
    throw new UapiError("EIO", {
      syscall: "access",
      attempted,
      remedy: "reset the device: it has failed",
      cause: error,
    });
  }

  #look(): void {
    if (this.#model.hasFailed === false) this.#revive();
  }

  #revive(): void {
    if (this.#failure === undefined) return;
    this.#failure = undefined;
    this.#listener.revived();
  }
}

/** The stack of an error, which helps to mend a bug. */
function reasonOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
