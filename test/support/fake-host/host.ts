import { PortCounters } from "../../../src/emulated/iommu/port-counters.js";
import { EmulatedIommufd } from "../../../src/emulated/iommufd.js";
import { PhysicalMemory } from "../../../src/emulated/physical-memory.js";
import { PinPort } from "../../../src/emulated/vfio/pin-port.js";
import type { DeviceSummary, Host } from "../../../src/host/host.js";
import { ArenaFile } from "../../../src/iommufd/arena-file.js";
import { MiB, PAGE_SIZE } from "../../../src/memory/address.js";
import { type Arena, createArena } from "../../../src/memory/arena.js";
import { InFlight } from "../../../src/memory/in-flight.js";
import { UapiError } from "../../../src/uapi/errno.js";
import {
  type FakeDevice,
  type FakeDeviceOptions,
  FakeIommuPort,
  type FakePort,
  fakeModelInfo,
  openFakeDevice,
} from "./device.js";
import { FakeIommu } from "./iommu.js";
import { type Script, scripted } from "./scripted.js";

/*
 * The host of tests that want no machine: all of it is on the test's thread, and nothing happens unless a test says so. Its
 * iommufd, and the driver of its devices are the emulated host's, so that it keeps to the uAPI as that does
 * (test/conformance/fake-host.test.ts); its devices are a test's hands.
 */

/** Large leaves of its page tables. */
export const LARGE_LEAF = 2 * MiB;

export type FakeIommufd = EmulatedIommufd & { readonly script: Script<EmulatedIommufd> };

/** A fake host. */
export class FakeHost implements Host {
  readonly name = "fake";
  readonly #options: readonly FakeDeviceOptions[];
  readonly #physical = new PhysicalMemory();
  readonly #inFlight: InFlight;
  readonly #iommus = new Map<string, FakeIommu>();
  readonly #open = new Set<string>();

  /**
   * @param ram what devices reach
   * @param bar what lies behind a BAR that they may reach, too
   */
  constructor(options: readonly FakeDeviceOptions[], ram: readonly Arena[], bar?: Arena) {
    this.#options = options;
    this.#inFlight = InFlight.allocate(options.length);
    for (const arena of ram) this.#physical.register(arena, { kind: "ram" });
    if (bar !== undefined) this.#physical.register(bar, { kind: "bar", port: options.length });
  }

  async devices(): Promise<DeviceSummary[]> {
    return this.#options.map(({ id, model = "fake", mdev = false }) => {
      return { id, model, kind: mdev ? "mdev" : "pci", iommuGroup: null };
    });
  }

  async openIommufd(): Promise<FakeIommufd> {
    return scripted(new EmulatedIommufd({ physical: this.#physical, inFlight: this.#inFlight }));
  }

  /** A file of whole pages. */
  async openFile(bytes: number): Promise<ArenaFile> {
    const arena = createArena(bytes);
    this.#physical.register(arena, { kind: "ram" });
    return new ArenaFile({ arena, offset: 0, length: bytes });
  }

  async openDevice(id: string): Promise<FakeDevice> {
    const index = this.#options.findIndex((options) => options.id === id);
    const call = { syscall: "open", attempted: `open '${id}'` };
    if (index < 0) throw new UapiError("ENODEV", { ...call, remedy: "give the id of one of the host's devices" });
    if (this.#open.has(id)) throw new UapiError("EBUSY", { ...call, remedy: "close it first" });
    const options = this.#options[index];
    this.#open.add(id);
    const iommu = fakeModelInfo(options).mdev ? null : this.#iommuOf(options);
    return openFakeDevice(options, {
      port: this.#portOf(index, iommu),
      iommu,
      inFlight: this.#inFlight,
      physical: this.#physical,
      onClose: () => this.#open.delete(id),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** The IOMMU in front of a device: devices that name the same one, and of which both or none can be tracked by it. */
  #iommuOf({ iommu: name = "iommu0", iommuTracks = true }: FakeDeviceOptions): FakeIommu {
    const key = `${name} ${iommuTracks}`;
    const iommu =
      this.#iommus.get(key) ?? new FakeIommu({ dirtyTracking: iommuTracks, pageSizes: [PAGE_SIZE, LARGE_LEAF] });
    this.#iommus.set(key, iommu);
    return iommu;
  }

  #portOf(port: number, iommu: FakeIommu | null): FakePort {
    if (iommu !== null) return new FakeIommuPort(iommu, port);
    const counters = PortCounters.allocate().values;
    const wiring = { port, inFlight: this.#inFlight.words, physical: this.#physical.posted(), counters };
    return { kind: "pins", pins: new PinPort(wiring) };
  }
}
