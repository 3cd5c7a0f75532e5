import type { AccessCallbacks } from "../host/host.js";
import type { Call } from "../host/iommufd-checks.js";
import { iovaOf } from "../memory/address.js";
import { IommufdAccess } from "./access.js";
import type { EmulatedIommuObject, SharedTrackerPort } from "./emulated-iommu.js";
import type { Hwpt } from "./hwpt.js";
import type { Ioas } from "./ioas.js";
import { IommufdObject } from "./objects.js";
import type { Port, SystemIommu } from "./system-iommu.js";

/**
 * A device bound to an iommufd (struct iommufd_device): it stands behind an IOMMU, alone in its group.
 *
 * What holds: while it is attached it holds its HWPT, and the stretches that its IOMMU reserves are reserved in that
 * HWPT's IOAS in its name.
 */
export class BoundDevice extends IommufdObject {
  readonly port: Port;
  readonly iommu: SystemIommu;
  #hwpt: Hwpt | null = null;

  constructor(port: Port, iommu: SystemIommu) {
    super();
    this.port = port;
    this.iommu = iommu;
    // The driver that bound it, until it unbinds.
    this.users = 1;
  }

  get hwpt(): Hwpt | null {
    return this.#hwpt;
  }

  /**
   * Attaches to an HWPT; where one was attached, replaces it in one step, so that no DMA is blocked in between.
   * @throws UapiError EADDRINUSE where something is mapped in a range that its IOMMU reserves, EINVAL where the domain
   * does not fit its IOMMU; then nothing has changed. What else its IOMMU throws may leave it detached.
   */
  async attach(hwpt: Hwpt, call: Call): Promise<void> {
    const old = this.#hwpt;
    if (old === hwpt) return;
    const entersIoas = old?.ioas !== hwpt.ioas;
    if (entersIoas) {
      const spans = this.iommu.reserved.map(({ first, last }) => ({
        start: iovaOf(first),
        last: iovaOf(last + 1) - 1n,
      }));
      await hwpt.ioas.lock.write(() => hwpt.ioas.reserve(spans, this, call));
    }
    try {
      await this.iommu.attach(this.port, hwpt.domain);
    } catch (error) {
      if (entersIoas) hwpt.ioas.unreserve(this);
      if (old !== null && !old.domain.ports.has(this.port)) this.#left(old);
      throw error;
    }
    this.#hwpt = hwpt;
    hwpt.users++;
    if (old !== null) {
      old.users--;
      if (entersIoas) old.ioas.unreserve(this);
    }
  }

  /** DMA is blocked when it resolves. */
  async detach(): Promise<void> {
    if (this.#hwpt === null) return;
    await this.iommu.attach(this.port, null);
    this.#left(this.#hwpt);
  }

  async destroy(): Promise<void> {
    // Detached by who unbinds it; nothing is held.
  }

  /** It is attached to nothing any more. */
  #left(hwpt: Hwpt): void {
    this.#hwpt = null;
    hwpt.users--;
    hwpt.ioas.unreserve(this);
  }
}

/** What an mdev's driver brings when it binds. */
export interface MdevBinding {
  /** Asked to unpin when memory is about to be unmapped. */
  readonly callbacks: AccessCallbacks;
  /** Present where its hardware can mark a tracker that it shares with other mdevs. */
  readonly sharedTracker?: SharedTrackerPort;
}

/**
 * A bound mdev: it stands behind no IOMMU and reaches memory through an access (vfio_iommufd_emulated_bind). Its id is
 * the access's, so calls that want a device answer ENOENT for it, as on Linux.
 */
export class BoundMdev extends IommufdAccess {
  readonly port: Port;
  readonly #sharedTracker: SharedTrackerPort | undefined;
  #joined: EmulatedIommuObject | null = null;

  constructor(port: Port, binding: MdevBinding, dispose: (access: IommufdAccess) => Promise<void>) {
    super(binding.callbacks, dispose);
    this.port = port;
    this.#sharedTracker = binding.sharedTracker;
  }

  get marksSharedTracker(): boolean {
    return this.#sharedTracker !== undefined;
  }

  /** Attaches to an IOAS, with the tracker of an emulated IOMMU or without one; or to nothing. */
  async attach(ioas: Ioas | null, tracker: EmulatedIommuObject | null, call: Call): Promise<void> {
    await this.setIoas(ioas, call, async () => {
      if (this.#sharedTracker === undefined || this.#joined === tracker) return;
      this.#joined?.leave(this.port);
      this.#joined = tracker;
      // From one tracker to the next in one step: in the same IOAS the device may be writing.
      if (tracker === null) await this.#sharedTracker.setTracker(null);
      else await tracker.join(this.port, this.#sharedTracker);
    });
  }
}
