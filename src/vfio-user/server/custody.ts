import { P2P_STATES, RUNNING_STATES } from "../../devices/variant-driver/mig-state.js";
import type { HandoverNotice } from "../../host/host.js";
import type { MigState } from "../../uapi/vfio.js";
import type { Stays } from "../stays.js";
import { refusal } from "./refusal.js";

const SET_STATE = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";

/** A connection that may move the device through the migration states. */
export interface Mover {
  readonly name: string;
  /** It says so before it gives the machine up ({@link Custody.announce}): one that has not said it has not given up. */
  readonly announces: boolean;
}

/** What becomes of a device whose mover has gone. */
export type Abandoned =
  /** It was not in a migration, or another's: nothing. */
  | { readonly what: "nothing" }
  /** The source's machine was never given up: the device goes back to RUNNING. */
  | { readonly what: "run" }
  /** It holds another device's state, or a part of it: it must not run with that, and goes back to the reset state. */
  | { readonly what: "reset" }
  /** Only an operator, or a reset, may say what becomes of it. */
  | { readonly what: "stay"; readonly stays: Stays };

/** Who has moved the device out of RUNNING, for a report; null: it runs. */
export interface CustodyReport {
  readonly movedBy: string;
  readonly connected: boolean;
  /** It was loaded with another device's state, at a destination. */
  readonly loaded: boolean;
  readonly notice: HandoverNotice | null;
  /** The migration that the notice named. */
  readonly migration: string | null;
  /** Why it stays as it is, once its mover has gone. */
  readonly stays: Stays | null;
}

/**
 * Whose device it is while it migrates. A connection that moves the device out of RUNNING has it until the device runs
 * again or the connection ends: others may reset the device, not move it.
 *
 * What holds: a device that its mover leaves runs again by itself only if the mover would have said that it gives the
 * machine up, and has not. In all other cases it stays as it is: two running machines are worse than none.
 */
export class Custody {
  #mover: Mover | null = null;
  /** The name of the last mover, connected or not. */
  #movedBy: string | null = null;
  #loaded = false;
  #announced: { readonly notice: HandoverNotice; readonly migration: string } | null = null;
  /** Why its last mover could only leave it as it is. */
  #stays: Stays | null = null;

  get report(): CustodyReport | null {
    if (this.#movedBy === null) return null;
    return {
      movedBy: this.#movedBy,
      connected: this.#mover !== null,
      loaded: this.#loaded,
      notice: this.#announced?.notice ?? null,
      migration: this.#announced?.migration ?? null,
      stays: this.#mover === null ? this.#stays : null,
    };
  }

  /** @throws UapiError EBUSY for another's device, EPERM for one that must not run here any more */
  check(user: Mover, next: MigState): void {
    const refuse = (code: "EBUSY" | "EPERM", remedy: string) =>
      refusal(code, SET_STATE, `move the device to ${next} for ${user.name}`, remedy);
    if (this.#mover !== null && this.#mover !== user) {
      throw refuse("EBUSY", `${this.#mover.name} is migrating it: cancel that migration first, or end its process`);
    }
    if (this.#announced?.notice === "gone" && (RUNNING_STATES.has(next) || P2P_STATES.has(next))) {
      throw refuse("EPERM", `migration ${this.#announced.migration} has handed it over: reset it to use it anew`);
    }
  }

  /** A change of state has ended, well or not: the device is in `state` now. */
  moved(user: Mover, state: MigState): void {
    if (state === "RUNNING") {
      this.clear();
      return;
    }
    this.#mover = user;
    this.#movedBy = user.name;
    if (state !== "RESUMING") return;
    this.#loaded = true;
    this.#announced = null;
    this.#stays = null;
  }

  /** DIRTMAP_COMMAND.HANDOVER. @throws UapiError EINVAL for a device that is not this connection's, or out of order */
  announce(user: Mover, notice: HandoverNotice, migration: string): void {
    const refuse = (remedy: string) =>
      refusal("EINVAL", "handover", `note '${notice}' of migration ${migration}`, remedy);
    if (this.#mover !== user) throw refuse("move the device out of RUNNING first, on this connection");
    const before = this.#announced;
    if (notice === "gone" && before?.migration !== migration) throw refuse("say 'committing' first");
    if (notice === "committing" && before?.notice === "gone") throw refuse("it has been handed over already");
    this.#announced = { notice, migration };
  }

  /** It runs again, or was reset: it is nobody's. */
  clear(): void {
    this.#mover = null;
    this.#movedBy = null;
    this.#loaded = false;
    this.#announced = null;
    this.#stays = null;
  }

  /** A connection is over, with the device in `state`. */
  leave(user: Mover, state: MigState): Abandoned {
    if (this.#mover !== user) return { what: "nothing" };
    this.#mover = null;
    if (this.#announced !== null) return this.#stay(this.#announced.notice === "gone" ? "handed-over" : "undecided");
    // It never ran with what it was given, and nothing but this connection knows how that goes on.
    if (state === "RESUMING") return { what: "reset" };
    if (!user.announces) return this.#stay("untold");
    if (this.#stays !== null) return this.#stay("earlier");
    if (this.#loaded) return { what: "reset" };
    return state === "ERROR" ? this.#stay("error") : { what: "run" };
  }

  #stay(stays: Stays): Abandoned {
    this.#stays = stays;
    return { what: "stay", stays };
  }
}
