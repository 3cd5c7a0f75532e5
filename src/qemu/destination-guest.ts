import { DirtmapError, explain } from "../errors.js";
import type { MachineShape } from "../host/shape.js";
import type { ArrivingMachine } from "../migration/memory-mover.js";
import { checkObstacles, checkStatus, type Guest, lookAtGuest } from "./guest.js";
import { type ControlledDevice, closeDevices, openDevices, shapeOfGuest } from "./guest-devices.js";
import { statusOf } from "./migration-status.js";
import type { Qemu } from "./qmp/qemu.js";
import type { GuestOptions } from "./source-guest.js";

/**
 * The guest that a migration loads, in a QEMU that was started with `-S -incoming defer`, and its devices.
 *
 * What holds: it runs only by {@link vcpus}. Disposed without ever having run, it can't any more: a QEMU that has begun to take a
 * guest is told to quit, since it can't begin anew and must never run what it took; its devices are reset by their servers, and
 * wait for a state again.
 */
export class DestinationGuest implements ArrivingMachine {
  readonly qemu: Qemu;
  readonly guest: Guest;
  readonly devices: readonly ControlledDevice[];
  readonly vcpus = { resume: () => this.#resume(), pause: () => this.#pause() };
  /** The guest's vCPUs ran at the source: they do here. */
  runs = true;
  /** QEMU has begun to take the guest. */
  taking = false;
  readonly #warn: (text: string) => void;
  #ran = false;

  private constructor(
    qemu: Qemu,
    { guest, devices, warn }: { guest: Guest; devices: readonly ControlledDevice[]; warn: (text: string) => void },
  ) {
    this.qemu = qemu;
    this.guest = guest;
    this.devices = devices;
    this.#warn = warn;
  }

  /**
   * Looks at the QEMU that waits, and reaches its devices. Nothing is changed.
   * @param qemu stays the caller's
   * @param options.warn takes what could not be done in the end, as sentences
   * @throws as SourceGuest.open does
   */
  static async open(
    qemu: Qemu,
    { sockets, warn = () => {} }: GuestOptions & { readonly warn?: (text: string) => void } = {},
  ): Promise<DestinationGuest> {
    const guest = await lookAtGuest(qemu);
    checkObstacles(guest, "destination");
    const anew = "start the destination's QEMU anew, with `-S -incoming defer`";
    const status = statusOf(await qemu.migration());
    await checkStatus(qemu, ["inmigrate"], {
      running: "name a QEMU that waits for a guest: this one runs one",
      otherwise: anew,
    });
    // One that another process has told to, or that was started with another -incoming.
    if (status !== "none") {
      throw new DirtmapError(`QEMU at ${qemu.name} takes a guest already: that migration is '${status}'`, {
        code: "WRONG_STATE",
        remedy: `see whose guest that is; for another one ${anew}`,
      });
    }
    const devices = await openDevices(guest.devices, { sockets, side: "destination" });
    return new DestinationGuest(qemu, { guest, devices, warn });
  }

  /** QEMU has begun to take a guest that it must not run. */
  get isLost(): boolean {
    return this.taking && !this.#ran;
  }

  shape(): Promise<MachineShape> {
    return shapeOfGuest(this.devices);
  }

  mayP2p(): boolean {
    return false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.isLost) {
      await this.qemu.quit().catch((error: unknown) => {
        // One whose stream has broken has ended by itself.
        if ((error as { code?: string }).code === "QMP_CLOSED") return;
        this.#warn(`QEMU at ${this.qemu.name} was not told to quit, and must not be continued: ${explain(error)}`);
      });
    }
    await closeDevices(this.devices);
  }

  async #resume(): Promise<void> {
    this.#ran = true;
    if (this.runs) await this.qemu.cont();
  }

  async #pause(): Promise<void> {
    await this.qemu.stop();
  }
}
