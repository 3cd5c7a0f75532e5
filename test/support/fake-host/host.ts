import { IommuDmaPort } from "../../../src/emulated/iommu/dma-port.js";
import { P2pMatrix } from "../../../src/emulated/iommu/p2p-matrix.js";
import { PortCounters } from "../../../src/emulated/iommu/port-counters.js";
import { EmulatedSystemIommu } from "../../../src/emulated/iommu/system-iommu.js";
import { EmulatedIommufd } from "../../../src/emulated/iommufd/iommufd.js";
import { EmulatedMemoryFile } from "../../../src/emulated/iommufd/memory-file.js";
import { PhysicalMemory } from "../../../src/emulated/physical-memory.js";
import { PinPort } from "../../../src/emulated/vfio/pin-port.js";
import type { DeviceSummary, Host } from "../../../src/host/host.js";
import { MiB, PAGE_SIZE } from "../../../src/memory/address.js";
import { type Arena, createArena } from "../../../src/memory/arena.js";
import { InFlight } from "../../../src/memory/in-flight.js";
import { UapiError } from "../../../src/uapi/errno.js";
import { type FakeDevice, type FakeDeviceOptions, type FakePort, fakeModelInfo, openFakeDevice } from "./device.js";
import { type Script, scripted } from "./scripted.js";

/*
 * The host of tests that want no machine: all of it is on the test's thread, and nothing happens unless a test says so. Its
 * iommufd, its page tables and the driver of its devices are the emulated host's, so that it keeps to the uAPI as that does
 * (test/conformance/fake-host.test.ts); its devices are a test's hands.
 */

/** Large leaves of its page tables. */
export const LARGE_LEAF = 2 * MiB;

/** For what the tests' IOASes map. */
const TABLE_BYTES = MiB;

export type FakeIommufd = EmulatedIommufd & { readonly script: Script<EmulatedIommufd> };

/** A fake host. */
export class FakeHost implements Host {
  readonly name = "fake";
  readonly #options: readonly FakeDeviceOptions[];
  readonly #physical = new PhysicalMemory();
  readonly #inFlight: InFlight;
  readonly #p2p: P2pMatrix;
  readonly #iommus = new Map<string, EmulatedSystemIommu>();
  readonly #open = new Set<string>();
  /** Ports: one for each device, and one for what is behind BARs that no device of the test has. */
  readonly #ports: number;

  /**
   * @param ram what devices reach
   * @param bar what lies behind a BAR that they may reach, too
   */
  constructor(options: readonly FakeDeviceOptions[], ram: readonly Arena[], bar?: Arena) {
    this.#options = options;
    this.#ports = options.length + 1;
    this.#inFlight = InFlight.allocate(this.#ports);
    this.#p2p = P2pMatrix.allocate(this.#ports);
    for (const arena of ram) this.#physical.register(arena, { kind: "ram" });
    if (bar !== undefined) this.#physical.register(bar, { kind: "bar", port: options.length });
    this.#p2p.words.fill(1);
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
  async openFile(bytes: number): Promise<EmulatedMemoryFile> {
    const arena = createArena(bytes);
    this.#physical.register(arena, { kind: "ram" });
    return new EmulatedMemoryFile(arena, bytes);
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

  async [Symbol.asyncDispose](): Promise<void> {
    for (const iommu of this.#iommus.values()) await iommu[Symbol.asyncDispose]();
  }

  /** The IOMMU in front of a device: devices that name the same one, and of which both or none can be tracked by it. */
  #iommuOf({ iommu: name = "iommu0", iommuTracks = true }: FakeDeviceOptions): EmulatedSystemIommu {
    const key = `${name} ${iommuTracks}`;
    const iommu =
      this.#iommus.get(key) ??
      new EmulatedSystemIommu({
        format: "amd-v1",
        dirtyTracking: iommuTracks,
        ports: this.#ports,
        inFlight: this.#inFlight,
        tableBytes: TABLE_BYTES,
        reading: "here",
        leafSizes: [PAGE_SIZE, LARGE_LEAF],
      });
    this.#iommus.set(key, iommu);
    return iommu;
  }

  #portOf(port: number, iommu: EmulatedSystemIommu | null): FakePort {
    const physical = this.#physical;
    const counters = PortCounters.allocate();
    if (iommu !== null) {
      const wiring = iommu.wiring(port, { physical, p2p: this.#p2p, counters, iotlb: 64 });
      return { kind: "iommu", port: new IommuDmaPort(wiring) };
    }
    const wiring = { port, inFlight: this.#inFlight.words, physical: physical.posted(), counters: counters.values };
    return { kind: "pins", port: new PinPort(wiring) };
  }
}
