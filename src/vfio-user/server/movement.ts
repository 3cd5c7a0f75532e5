import { explain } from "../../errors.js";
import type { MigState } from "../../uapi/vfio.js";
import { whatToDo } from "../stays.js";
import { Custody, type Mover } from "./custody.js";

/** A device that connections move through the migration states. */
export interface MovedDevice {
  readonly id: string;
  /** Of its server, for messages. */
  readonly socket: string;
  /** RUNNING of one that can't be migrated. */
  state(): MigState;
  /** By the arcs of the state machine. */
  moveTo(next: MigState): Promise<unknown>;
  /** Back to what it was after power-on; ends its custody, too. */
  reset(): Promise<unknown>;
}

/** What connections do to a device's migration state, and what becomes of it when they go. One after the other. */
export class Movement {
  readonly custody = new Custody();
  readonly #device: MovedDevice;
  readonly #log: (line: string) => void;
  #waitsForState: boolean;

  /** @param options.incoming another device is to be migrated here: see {@link waitsForState} */
  constructor(device: MovedDevice, { incoming, log }: { incoming: boolean; log: (line: string) => void }) {
    this.#device = device;
    this.#waitsForState = incoming;
    this.#log = log;
  }

  /**
   * Another device is to be migrated here, and has not been: until its state is there and runs, this one does no work, whatever
   * its client does. A reset by its client changes nothing; one over a control connection is an operator's, who has it run
   * without.
   */
  get waitsForState(): boolean {
    return this.#waitsForState;
  }

  /** The device is gone, with its state, and another takes its place. */
  begin({ incoming }: { incoming: boolean }): void {
    this.custody.clear();
    this.#waitsForState = incoming;
  }

  /** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET. @throws UapiError also of {@link Custody.check} */
  async setState(next: MigState, user: Mover): Promise<void> {
    const device = this.#device;
    this.custody.check(user, next);
    const from = device.state();
    const loaded = this.custody.report?.loaded === true;
    try {
      await device.moveTo(next);
      if (loaded && next !== "RESUMING" && next !== "STOP") this.#waitsForState = false;
    } finally {
      const now = device.state();
      if (now !== from) this.custody.moved(user, now);
    }
  }

  /** VFIO_USER_DEVICE_RESET: also ends DMA logging and the migration's session. */
  async reset(user: Mover & { readonly kind?: "main" | "control" }): Promise<void> {
    const before = this.custody.report;
    await this.#device.reset();
    if (user.kind === "control") this.#waitsForState = false;
    if (before !== null && before.movedBy !== user.name) {
      this.#log(`${user.name} has reset '${this.#device.id}', which ends the migration of ${before.movedBy}`);
    }
  }

  /**
   * A connection is over. A migration that it was in the middle of is undone, if it can't have handed the machine over; the
   * log says what became of the device. Does not throw.
   */
  async release(user: Mover): Promise<void> {
    const { id, socket } = this.#device;
    const state = this.#device.state();
    const abandoned = this.custody.leave(user, state);
    if (abandoned.what === "nothing") return;
    const left = `${user.name} has gone and left '${id}' in ${state}`;
    try {
      if (abandoned.what === "stay") {
        const migration = this.custody.report?.migration ?? null;
        return this.#log(`${left}, where it stays; ${whatToDo(abandoned.stays, { socket, migration })}`);
      }
      if (abandoned.what === "reset") await this.#device.reset();
      else await this.#device.moveTo("RUNNING");
      this.custody.clear();
      this.#log(
        `${left}: ${abandoned.what === "reset" ? "it is reset, since its state is another's" : "it runs again"}`,
      );
    } catch (error) {
      this.#log(`${left}, and it can't be brought back: ${explain(error)}`);
    }
  }

  /** The device's client comes or goes: that does not disturb another's migration, but whoever reads the log should know. */
  noteMeanwhile(name: string, what: "come" | "gone"): void {
    const { report } = this.custody;
    if (report === null || report.movedBy === name) return;
    const where = `'${this.#device.id}' is in ${this.#device.state()}`;
    this.#log(`${name} has ${what} while ${where}, moved there by ${report.movedBy}`);
  }
}
