import { resolve } from "node:path";
import { DirtmapError } from "../errors.js";
import type { MachineShape } from "../host/shape.js";
import type { MovedMachine } from "../migration/memory-mover.js";
import { checkObstacles, checkStatus, type Guest, lookAtGuest, socketOf } from "./guest.js";
import { type ControlledDevice, closeDevices, openDevices, shapeOfGuest } from "./guest-devices.js";
import { IDLE, statusOf } from "./migration-status.js";
import { pciAddressesOf } from "./pci-address.js";
import type { Qemu } from "./qmp/qemu.js";

/** By the states that a guest can't be moved in. */
const REMEDIES = {
  inmigrate: "name the QEMU that runs the guest: this one waits for one itself",
  postmigrate: "see where the guest runs: it has been moved from here. If Dirtmap moved it: `dirtmap list`",
  shutdown: "start the guest anew: it has shut down",
  prelaunch: "start the guest first: cont",
  suspended: "wake the guest first: system_wakeup",
  otherwise: "let the guest run first (cont), or start it anew: only one that runs, or is paused, is moved",
} as const;

export interface GuestOptions {
  /** Sockets of devices that QEMU does not tell, by the devices' names. */
  readonly sockets?: Readonly<Record<string, string>>;
}

/** A guest that is to be moved, with its devices: what a migration is told of it. Disposing closes the control connections. */
export class SourceGuest implements MovedMachine, AsyncDisposable {
  readonly qemu: Qemu;
  readonly guest: Guest;
  readonly devices: readonly ControlledDevice[];
  /** The vCPUs ran when it was opened. */
  readonly running: boolean;
  /** Where each device's server listens, by the devices' names. */
  readonly sockets: ReadonlyMap<string, string>;

  private constructor(
    qemu: Qemu,
    found: {
      guest: Guest;
      devices: readonly ControlledDevice[];
      running: boolean;
      sockets: ReadonlyMap<string, string>;
    },
  ) {
    this.qemu = qemu;
    this.guest = found.guest;
    this.devices = found.devices;
    this.running = found.running;
    this.sockets = found.sockets;
  }

  /**
   * Looks at the guest and reaches its devices. Nothing is changed.
   * @param qemu stays the caller's
   * @throws UsageError for what can't be moved: see {@link lookAtGuest}, {@link checkObstacles} and {@link openDevices};
   * DirtmapError `WRONG_STATE`, `NOT_ENUMERATED`
   */
  static async open(qemu: Qemu, { sockets }: GuestOptions = {}): Promise<SourceGuest> {
    const guest = await lookAtGuest(qemu);
    checkObstacles(guest, "source");
    const status = statusOf(await qemu.migration());
    if (!IDLE.has(status)) {
      throw new DirtmapError(`a migration of QEMU at ${qemu.name} is under way: it is '${status}'`, {
        code: "WRONG_STATE",
        remedy: "wait until it ends, or cancel it: migrate_cancel",
      });
    }
    await checkStatus(qemu, ["running", "paused"], REMEDIES);
    const { running } = await qemu.status();
    await pciAddressesOf(qemu, guest.devices);
    const devices = await openDevices(guest.devices, { sockets, side: "source" });
    const paths = new Map(guest.devices.map((place) => [place.name, resolve(socketOf(place, sockets))]));
    return new SourceGuest(qemu, { guest, devices, running, sockets: paths });
  }

  shape(): Promise<MachineShape> {
    return shapeOfGuest(this.devices);
  }

  /** QEMU's devices reach each other only through its memory, which the servers don't. */
  mayP2p(): boolean {
    return false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await closeDevices(this.devices);
  }
}
