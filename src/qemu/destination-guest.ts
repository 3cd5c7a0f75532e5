import { DirtmapError, explain } from "../errors.js";
import type { HandoverNotice } from "../host/host.js";
import { DEFAULT_TIMEOUTS } from "../migration/deadline.js";
import { DeviceStateReceiver } from "../migration/device-state.js";
import { announceHandover, runAll } from "../migration/lock-step.js";
import { ConfigPorts } from "./config-ports.js";
import { checkObstacles, checkStatus, type Guest, lookAtGuest } from "./guest.js";
import { closeDevices, type ControlledDevice, openDevices } from "./guest-devices.js";
import { MigrationSettings, type WantedSettings } from "./migration-settings.js";
import { MigrationWatch } from "./migration-status.js";
import { pciAddressOf } from "./pci-address.js";
import { type PciState, restorePciState } from "./pci-state.js";
import type { Qemu } from "./qmp/qemu.js";

const { deviceMs } = DEFAULT_TIMEOUTS;

/** From the source's `completed` until the destination says so, too. */
const LOADED_MS = 30_000;

type StateChunk = Parameters<DeviceStateReceiver["write"]>[0];

export interface DestinationGuestOptions {
  /** Sockets of devices that QEMU does not tell, by the devices' names. */
  readonly sockets?: Readonly<Record<string, string>>;
}

/**
 * The guest that a migration loads, in a QEMU that was started with `-S -incoming defer`, and its devices. Its methods are
 * called in the order in which they stand here; before {@link run}, {@link discard} ends it.
 */
export class DestinationGuest implements AsyncDisposable {
  readonly qemu: Qemu;
  readonly guest: Guest;
  readonly devices: readonly ControlledDevice[];
  readonly #watch: MigrationWatch;
  readonly #receivers = new Map<string, DeviceStateReceiver>();
  #settings: MigrationSettings | undefined;
  #listens = false;

  private constructor(qemu: Qemu, guest: Guest, devices: readonly ControlledDevice[]) {
    this.qemu = qemu;
    this.guest = guest;
    this.devices = devices;
    this.#watch = new MigrationWatch(qemu);
  }

  /** @param qemu stays the caller's. @throws as {@link SourceGuest.open} */
  static async open(qemu: Qemu, options: DestinationGuestOptions = {}): Promise<DestinationGuest> {
    const guest = await lookAtGuest(qemu);
    checkObstacles(guest, "destination");
    await checkStatus(qemu, ["inmigrate"], "start the destination's QEMU anew, with `-S -incoming defer`");
    const devices = await openDevices(guest.devices, { sockets: options.sockets, side: "destination" });
    return new DestinationGuest(qemu, guest, devices);
  }

  /**
   * Has the devices take states, and QEMU listen. Returns where it listens, as QEMU writes it.
   * @param uri `unix:PATH` or `tcp:HOST:PORT`; port 0: one that is free
   */
  async listen(uri: string, settings: WantedSettings): Promise<string> {
    // Images of QEMU's own disks stay the source's until the guest runs here.
    const late = { events: true, "late-block-activate": true };
    const capabilities = { ...settings.capabilities, ...late };
    this.#settings = await MigrationSettings.change(this.qemu, { ...settings, capabilities });
    for (const { id, vfio } of this.devices) this.#receivers.set(id, await DeviceStateReceiver.open(vfio));
    this.#listens = true;
    await this.qemu.migrateIncoming(uri);
    const { "socket-address": addresses = [] } = await this.qemu.migration();
    const [first] = addresses;
    return first?.type === "inet" ? `tcp:${String(first.host)}:${String(first.port)}` : uri;
  }

  /** A part of a device's state. @throws DirtmapError `BAD_DEVICE_STATE` */
  async load(chunk: StateChunk): Promise<void> {
    const receiver = this.#receivers.get(chunk.device);
    if (receiver === undefined) {
      throw new DirtmapError(`state came of '${chunk.device}', which this guest does not have`, { code: "BAD_DEVICE_STATE" });
    }
    await receiver.write(chunk);
  }

  /** All has come: every device takes its state over, and QEMU has the machine's. The machine is paused. */
  async loaded(signal?: AbortSignal): Promise<void> {
    await Promise.all([...this.#receivers.values()].map((receiver) => receiver.finish()));
    await this.#watch.until(["completed"], { limitMs: LOADED_MS, signal });
  }

  /** The devices' PCI states, by their names, become what they were; read back and compared. */
  async restorePci(states: ReadonlyMap<string, PciState>): Promise<void> {
    await ConfigPorts.with(this.qemu, async (ports) => {
      for (const { id, vfio, place } of this.devices) {
        const saved = states.get(id);
        if (saved === undefined) {
          throw new DirtmapError(`the PCI state of '${id}' did not come`, { code: "BAD_DEVICE_STATE" });
        }
        const at = await pciAddressOf(this.qemu, place);
        await restorePciState(this.qemu, ports, at, { saved, server: vfio });
      }
    });
  }

  /** Tells the devices' servers that the guest is about to run here. */
  announce(notice: HandoverNotice, migration: string): Promise<void> {
    return announceHandover(this.devices, notice, { migration, deviceMs });
  }

  /** The guest runs: devices first, then vCPUs. @param vcpus false: they stay paused, as they were at the source */
  async run({ vcpus }: { vcpus: boolean }): Promise<void> {
    await runAll(this.devices, deviceMs);
    if (vcpus) await this.qemu.cont();
  }

  /** Puts QEMU's settings back. Returns what could not be done, as sentences. */
  async settled(): Promise<string[]> {
    const problems = (await this.#settings?.restore()) ?? [];
    this.#settings = undefined;
    return problems;
  }

  /**
   * The guest goes on at the source. A QEMU that has begun to take a machine can't begin anew, and must never run what it took:
   * it ends. One that has not is as it was.
   */
  async discard(): Promise<string[]> {
    if (!this.#listens) return this.settled();
    try {
      await this.qemu.quit();
      return [];
    } catch (error) {
      return [`QEMU at ${this.qemu.name} was not told to quit, and must not be continued: ${explain(error)}`];
    }
  }

  /** Closes the connections to the devices' servers; a device that does not run is reset by them, and waits for a state again. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch[Symbol.dispose]();
    await closeDevices(this.devices);
  }
}
