import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { DirtmapError, explain } from "../errors.js";
import type { HandoverNotice } from "../host/host.js";
import { DEFAULT_TIMEOUTS } from "../migration/deadline.js";
import { DeviceStateSender } from "../migration/device-state.js";
import { announceHandover, startPrecopy, stopAll, takeDevicesBack } from "../migration/lock-step.js";
import { ConfigPorts } from "./config-ports.js";
import { checkObstacles, checkStatus, type Guest, lookAtGuest } from "./guest.js";
import { closeDevices, type ControlledDevice, openDevices } from "./guest-devices.js";
import { DEFAULT_TRACKER, DeviceTracking, type DeviceShare, type GuestTracker } from "./guest-tracking.js";
import { MigrationSettings, type WantedSettings } from "./migration-settings.js";
import { IDLE, MigrationWatch, statusOf, type WaitOptions } from "./migration-status.js";
import { pciAddressOf } from "./pci-address.js";
import { type PciState, readPciState } from "./pci-state.js";
import type { MigrationInfo, Qemu } from "./qmp/qemu.js";

const { deviceMs } = DEFAULT_TIMEOUTS;

/** What is left of QEMU's stream after the machine is paused, and its end: far longer than any downtime. */
const SWITCHOVER_MS = 60_000;
const CANCEL_MS = 30_000;

/** Where tests reach in. */
export interface SourceHooks {
  /** After the last read of a device's log: a bit cleared here is a lost write. */
  afterRead?(device: string, dirty: DirtyBitmap): void;
}

export interface SourceGuestOptions {
  /** Sockets of devices that QEMU does not tell, by the devices' names. */
  readonly sockets?: Readonly<Record<string, string>>;
  /** By the devices' names; left out: {@link DEFAULT_TRACKER}. */
  readonly trackers?: Readonly<Record<string, GuestTracker>>;
  readonly hooks?: SourceHooks;
}

/** What moves a device's state, chunk by chunk. */
export type SendState = ConstructorParameters<typeof DeviceStateSender>[2];

/**
 * The guest that is to be moved, and its devices. Its methods are called in the order in which they stand here; up to
 * {@link announce} with `committing`, {@link takeBack} lets the guest run on with all its devices.
 */
export class SourceGuest implements AsyncDisposable {
  readonly qemu: Qemu;
  readonly guest: Guest;
  readonly devices: readonly ControlledDevice[];
  readonly #options: SourceGuestOptions;
  readonly #watch: MigrationWatch;
  /** The vCPUs ran when it was opened. */
  readonly #ran: boolean;
  #settings: MigrationSettings | undefined;
  #tracking: DeviceTracking[] = [];
  #senders: DeviceStateSender[] = [];
  #touched = false;

  private constructor(
    qemu: Qemu,
    options: SourceGuestOptions,
    found: { guest: Guest; devices: readonly ControlledDevice[]; ran: boolean },
  ) {
    this.qemu = qemu;
    this.guest = found.guest;
    this.devices = found.devices;
    this.#ran = found.ran;
    this.#options = options;
    this.#watch = new MigrationWatch(qemu);
  }

  /**
   * Looks at the guest and reaches its devices. Nothing is changed.
   * @param qemu stays the caller's
   * @throws UsageError for what can't be moved: see {@link lookAtGuest}, {@link checkObstacles} and {@link openDevices};
   * DirtmapError `WRONG_STATE`
   */
  static async open(qemu: Qemu, options: SourceGuestOptions = {}): Promise<SourceGuest> {
    const guest = await lookAtGuest(qemu);
    checkObstacles(guest, "source");
    const status = statusOf(await qemu.migration());
    if (!IDLE.has(status)) {
      throw new DirtmapError(`a migration of QEMU at ${qemu.name} is under way: it is '${status}'`, {
        code: "WRONG_STATE",
        remedy: "wait until it ends, or cancel it: migrate_cancel",
      });
    }
    await checkStatus(qemu, ["running", "paused"], "start the guest first: only one that runs, or is paused, is moved");
    const { running } = await qemu.status();
    const devices = await openDevices(guest.devices, { sockets: options.sockets, side: "source" });
    return new SourceGuest(qemu, options, { guest, devices, ran: running });
  }

  /** How a device is tracked. */
  trackerOf({ id }: ControlledDevice): GuestTracker {
    const { trackers = {} } = this.#options;
    return Object.hasOwn(trackers, id) ? trackers[id] : DEFAULT_TRACKER;
  }

  /** Tracks every device; then QEMU may look at the memory. @param send takes the devices' states, from pre-copy on */
  async prepare(settings: WantedSettings, send: SendState): Promise<void> {
    this.#settings = await MigrationSettings.change(this.qemu, {
      ...settings,
      capabilities: { ...settings.capabilities, events: true, "pause-before-switchover": true },
    });
    for (const device of this.devices) this.#tracking.push(await DeviceTracking.start(device, this.trackerOf(device)));
    this.#touched = true;
    await startPrecopy(this.devices, new Set(), deviceMs, (device, stream) => {
      this.#senders.push(new DeviceStateSender(device.id, stream, send));
    });
    this.#send = send;
  }
  #send: SendState = async () => {};

  /** Begins QEMU's migration, and waits until it has paused the machine. @param uri as QEMU writes it */
  async precopy(uri: string, options: WaitOptions = {}): Promise<MigrationInfo> {
    await this.qemu.migrate(uri);
    return this.#watch.until(["pre-switchover"], options);
  }

  /** Stops every device of the paused machine, and has QEMU know of all that they wrote. */
  async stop(): Promise<DeviceShare[]> {
    await stopAll(this.devices, new Set(), deviceMs, (device, stream) => {
      this.#senders.push(new DeviceStateSender(device.id, stream, this.#send));
    });
    const afterRead = this.#options.hooks?.afterRead;
    return Promise.all(this.#tracking.map((tracking) => tracking.finish(afterRead)));
  }

  /** The devices' PCI state, by their names. */
  async pciStates(): Promise<ReadonlyMap<string, PciState>> {
    const states = new Map<string, PciState>();
    await ConfigPorts.with(this.qemu, async (ports) => {
      for (const { id, place } of this.devices) {
        states.set(id, await readPciState(this.qemu, ports, await pciAddressOf(this.qemu, place)));
      }
    });
    return states;
  }

  /** Sends the devices' states, to their ends. */
  async sendStates(signal: AbortSignal): Promise<void> {
    await Promise.all(this.#senders.map((sender) => sender.sendRest(signal)));
  }

  /** Lets QEMU move the rest; resolves when the destination's QEMU has all of it. The machine stays paused. */
  async switchOver(signal?: AbortSignal): Promise<MigrationInfo> {
    await this.qemu.migrateContinue();
    return this.#watch.until(["completed"], { limitMs: SWITCHOVER_MS, signal });
  }

  /** Tells the devices' servers that the guest is about to be given up, or that it is gone. */
  announce(notice: HandoverNotice, migration: string): Promise<void> {
    return announceHandover(this.devices, notice, { migration, deviceMs });
  }

  /**
   * The guest runs on here, with its devices, wherever the migration was. Never throws; returns what could not be done, as
   * sentences.
   */
  async takeBack(): Promise<string[]> {
    const problems: string[] = [];
    const tried = async (what: string, doing: () => Promise<unknown>) => {
      try {
        await doing();
      } catch (error) {
        problems.push(`${what}: ${explain(error)}`);
      }
    };
    // Devices first: QEMU lets the vCPUs run as soon as its migration is cancelled.
    if (this.#touched) problems.push(...(await takeDevicesBack(this.devices, new Set(), deviceMs)));
    await tried("QEMU's migration cancelled", () => this.#cancel());
    await tried("the guest running again", async () => {
      if (this.#ran && !(await this.qemu.status()).running) await this.qemu.cont();
    });
    await this.#untrack(tried);
    problems.push(...((await this.#settings?.restore()) ?? []));
    this.#settings = undefined;
    return problems;
  }

  /** The guest runs at the destination: ends what is left here. @param quit QEMU, too; else it stays paused for good */
  async letGo({ quit }: { quit: boolean }): Promise<string[]> {
    const problems: string[] = [];
    if (!quit) problems.push(...((await this.#settings?.restore()) ?? []));
    else {
      await this.qemu.quit().catch((error: unknown) => {
        problems.push(`QEMU at ${this.qemu.name} was not told to quit: ${explain(error)}`);
      });
    }
    this.#settings = undefined;
    return problems;
  }

  /** Closes the connections to the devices' servers; a migration that was not given up is undone by them. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#senders.map((sender) => sender.close()));
    this.#watch[Symbol.dispose]();
    await closeDevices(this.devices);
  }

  async #cancel(): Promise<void> {
    if (IDLE.has(statusOf(await this.qemu.migration()))) return;
    await this.qemu.migrateCancel();
    await this.#watch.until(IDLE, { limitMs: CANCEL_MS });
  }

  async #untrack(tried: (what: string, doing: () => Promise<unknown>) => Promise<void>): Promise<void> {
    const tracking = this.#tracking;
    this.#tracking = [];
    for (const each of tracking) await tried("a device's tracking ended", () => each.stop());
  }
}
