import { P2P_STATES, RUNNING_STATES } from "../../devices/driver/mig-state.js";
import type { HandoverNotice } from "../../host/host.js";
import type { MigState } from "../../uapi/vfio.js";
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
  | { readonly what: "stay"; readonly why: string };

/** Who has moved the device out of RUNNING, for a report; null: it runs. */
export interface CustodyReport {
  readonly movedBy: string;
  readonly connected: boolean;
  /** It was loaded with another device's state, at a destination. */
  readonly loaded: boolean;
  readonly notice: HandoverNotice | null;
  /** The migration that the notice named. */
  readonly migration: string | null;
}

/**
 * Whose device it is while it migrates. A connection that moves the device out of RUNNING has it until the device runs
 * again or the connection ends: others may reset the device, not move it.
 *
 * What holds: a device that its mover leaves runs again by itself only if the mover would have said that it gives the
 * machine up, and has not. In all other cases it stays as it is: two running machines are worse than none.
 */
export class Custody {
  /** Named in what an operator is told to do. */
  readonly #socket: string;
  #mover: Mover | null = null;
  /** The name of the last mover, connected or not. */
  #movedBy: string | null = null;
  #loaded = false;
  #announced: { readonly notice: HandoverNotice; readonly migration: string } | null = null;
  /** A mover has left it with its fate open. */
  #isOpen = false;

  constructor(socket: string) {
    this.#socket = socket;
  }

  get report(): CustodyReport | null {
    if (this.#movedBy === null) return null;
    return {
      movedBy: this.#movedBy,
      connected: this.#mover !== null,
      loaded: this.#loaded,
      notice: this.#announced?.notice ?? null,
      migration: this.#announced?.migration ?? null,
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
    if (state === "RUNNING") return this.clear();
    this.#mover = user;
    this.#movedBy = user.name;
    if (state !== "RESUMING") return;
    this.#loaded = true;
    this.#announced = null;
    this.#isOpen = false;
  }

  /** DIRTMAP_COMMAND.HANDOVER. @throws UapiError EINVAL for a device that is not this connection's, or out of order */
  announce(user: Mover, notice: HandoverNotice, migration: string): void {
    const refuse = (remedy: string) =>
      refusal("EINVAL", "handover", `note '${notice}' of migration ${migration}`, remedy);
    if (this.#mover !== user) throw refuse("move the device out of RUNNING first, on this connection");
    const before = this.#announced;
    if (notice === "gone" && before?.migration !== migration) throw refuse("say 'committing' first");
    this.#announced = { notice, migration };
  }

  /** It runs again, or was reset: it is nobody's. */
  clear(): void {
    this.#mover = null;
    this.#movedBy = null;
    this.#loaded = false;
    this.#announced = null;
    this.#isOpen = false;
  }

  /** A connection is over, with the device in `state`. */
  leave(user: Mover, state: MigState): Abandoned {
    if (this.#mover !== user) return { what: "nothing" };
    this.#mover = null;
    const stay = (why: string): Abandoned => {
      this.#isOpen = true;
      return { what: "stay", why };
    };
    const resume = `\`dirtmap device resume ${this.#socket}\``;
    if (this.#announced?.notice === "gone") {
      return stay(`migration ${this.#announced.migration} has handed it over: a reset makes it usable again`);
    }
    if (this.#announced !== null) {
      const { migration } = this.#announced;
      return stay(
        `migration ${migration} may have handed it over: look at its other side; if nothing runs there, ${resume} lets it run here`,
      );
    }
    // It never ran with what it was given, and nothing but this connection knows how that goes on.
    if (state === "RESUMING") return { what: "reset" };
    if (!user.announces) {
      return stay(`its client does not tell whether it has handed it over: if it has not, ${resume} lets it run`);
    }
    if (this.#isOpen) return stay(`an earlier migration has left it so: ${resume} lets it run`);
    if (this.#loaded) return { what: "reset" };
    if (state === "ERROR") return stay(`only a reset leads out of ERROR: ${resume} with --reset does one`);
    return { what: "run" };
  }
}
