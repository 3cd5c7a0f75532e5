import { DirtmapError } from "../errors.js";
import type { MemoryArrival, MemoryDestination } from "../migration/memory-mover.js";
import { settled } from "../settled.js";
import { ConfigSpace } from "./config-space.js";
import type { DestinationGuest } from "./destination-guest.js";
import { readGuestState } from "./guest-state.js";
import { MigrationSettings, type MigrationTuning, migrationSettings } from "./migration-settings.js";
import { MigrationWatch } from "./migration-status.js";
import { type PciState, restorePciState } from "./pci-state.js";
import { isRefusal } from "./qmp/qemu.js";

/** From PREPARE, which the source says while its QEMU still sends, until all is loaded: longer than that may take at the source. */
const LOADED_MS = 90_000;

export interface QemuDestinationOptions extends MigrationTuning {
  /** Where this side's QEMU listens for the source's, as QEMU writes it: `tcp:HOST:PORT` or `unix:PATH`. */
  readonly address: string;
  /** Takes what could not be done in the end, as sentences. */
  readonly warn?: (text: string) => void;
}

/** The destination's side of a QEMU guest's mover: another QEMU, which takes memory and vCPUs by QEMU's own migration. */
export class QemuDestination implements MemoryDestination<DestinationGuest, "qemu"> {
  readonly kind = "qemu";
  readonly #open: () => Promise<DestinationGuest>;
  readonly #options: QemuDestinationOptions;
  readonly #signal: AbortSignal;

  /** @param open the guest that waits: see {@link DestinationGuest.open}. @param signal fires when nothing more is received */
  constructor(open: () => Promise<DestinationGuest>, options: QemuDestinationOptions, signal: AbortSignal) {
    this.#open = open;
    this.#options = options;
    this.#signal = signal;
  }

  build(): Promise<DestinationGuest> {
    return this.#open();
  }

  shape(guest: DestinationGuest) {
    return guest.shape();
  }

  async open(guest: DestinationGuest) {
    // Images of QEMU's own disks stay the source's until the guest runs here.
    const wanted = migrationSettings(this.#options, { events: true, "late-block-activate": true });
    const settings = await MigrationSettings.change(guest.qemu, wanted);
    const arrival = new QemuArrival(guest, settings, { ...this.#options, signal: this.#signal });
    try {
      guest.taking = true;
      await guest.qemu.migrateIncoming(this.#options.address);
    } catch (error) {
      // It has refused, so that it has not begun: it stays as it was, for another.
      if (isRefusal(error)) guest.taking = false;
      await arrival[Symbol.asyncDispose]();
      throw error;
    }
    return { answer: { kind: "qemu" as const }, arrival };
  }
}

/** A guest on its way into QEMU. */
class QemuArrival implements MemoryArrival {
  readonly takeRound = null;
  readonly comparison = null;
  /** QEMU ends when its stream breaks; what has been lost is noticed when it is asked next. */
  readonly failed = new Promise<never>(() => {});
  readonly #guest: DestinationGuest;
  readonly #settings: MigrationSettings;
  readonly #watch: MigrationWatch;
  readonly #signal: AbortSignal;
  readonly #warn: (text: string) => void;

  constructor(
    guest: DestinationGuest,
    settings: MigrationSettings,
    { signal, warn = () => {} }: { signal: AbortSignal; warn?: (text: string) => void },
  ) {
    this.#guest = guest;
    this.#settings = settings;
    this.#watch = new MigrationWatch(guest.qemu);
    this.#signal = signal;
    this.#warn = warn;
  }

  async arrived(): Promise<void> {
    await this.#watch.until(["completed"], { limitMs: LOADED_MS, signal: this.#signal });
  }

  /** The devices first: QEMU's accesses to their configuration spaces go to their servers, too. */
  async load(state: Uint8Array, devicesLoaded: Promise<void>): Promise<undefined> {
    const { running, devices } = readGuestState(state);
    await devicesLoaded;
    this.#guest.runs = running;
    await this.#restorePci(devices);
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch[Symbol.dispose]();
    // A QEMU that ends needs none.
    if (this.#guest.isLost) return;
    for (const problem of await this.#settings.restore()) this.#warn(problem);
  }

  async #restorePci(states: ReadonlyMap<string, PciState>): Promise<void> {
    const { qemu, devices } = this.#guest;
    const places = devices.map(({ place }) => place);
    await using space = await ConfigSpace.open(qemu, places);
    const restoring = devices.map(async ({ id, vfio }, i) => {
      const saved = states.get(id);
      if (saved === undefined) {
        throw new DirtmapError(`the PCI state of '${id}' did not come`, { code: "BAD_GUEST_STATE" });
      }
      await restorePciState(qemu, space, space.addresses[i], { saved, server: vfio });
    });
    // All have ended before the guest's own port address is put back.
    await settled(restoring);
  }
}
