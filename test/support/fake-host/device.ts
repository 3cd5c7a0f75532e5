import { DmaLog, type PostedDmaLog } from "../../../src/devices/dma-log.js";
import type { DmaFault, ModelInfo } from "../../../src/devices/model.js";
import { REGION } from "../../../src/devices/pci-model.js";
import { decodeRecords, encodeRecords } from "../../../src/devices/records.js";
import type { RunMode } from "../../../src/devices/variant-driver/migration-driver.js";
import type { DeviceSide, PinService } from "../../../src/emulated/threads/device-threads.js";
import { EmulatedVfioDevice } from "../../../src/emulated/vfio/device.js";
import type { PinPort } from "../../../src/emulated/vfio/pin-port.js";
import type { DmaLoggingLimits, MigrationSupport, ObjectId } from "../../../src/host/host.js";
import { fixedBits } from "../../../src/host/pci-shape.js";
import type { ShapeFacts } from "../../../src/host/shape.js";
import type { PostedTracker } from "../../../src/iommufd/emulated-iommu.js";
import type { Port } from "../../../src/iommufd/system-iommu.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../../../src/memory/address.js";
import type { MigState } from "../../../src/uapi/vfio.js";
import type { FakeIommu } from "./iommu.js";
import { type Script, scripted } from "./scripted.js";

/** What a fake device is made with; each absent part is something that it lacks. */
export interface FakeDeviceOptions {
  readonly id: string;
  readonly model?: string;
  readonly mdev?: boolean;
  /** Devices with the same one can share an HWPT. */
  readonly iommu?: string;
  readonly iommuTracks?: boolean;
  readonly log?: Partial<DmaLoggingLimits>;
  readonly sharedTracker?: boolean;
  readonly migration?: MigrationSupport | null;
}

/** A device's port of an IOMMU. What it writes is marked, and stored nowhere. */
export class FakeIommuPort {
  readonly kind = "iommu";
  readonly port: Port;
  /** The device's own log, while it is on. */
  log: DmaLog | null = null;
  readonly #iommu: FakeIommu;

  constructor(iommu: FakeIommu, port: Port) {
    this.#iommu = iommu;
    this.port = port;
  }

  write(page: PageNumber): DmaFault | null {
    if (!this.#iommu.write(this.port, page)) return "not-mapped";
    this.log?.mark(page);
    return null;
  }
}

/** A fake device's way to memory: through an IOMMU, or an mdev's to the pages that it has pinned. */
export type FakePort = FakeIommuPort | { readonly kind: "pins"; readonly pins: PinPort };

const CONFIG_BYTES = 256;
/** Tags of its state's records. */
const TAG = { CONFIG: 1, STATE: 2 } as const;

/** The head of a configuration space: a vendor and a device that no list of ids has. */
const POWER_ON_CONFIG = Uint8Array.from({ length: CONFIG_BYTES }, (_, at) => [0xfa, 0xce, 0xde, 0xad][at] ?? 0);
const FIXED_CONFIG = fixedBits(POWER_ON_CONFIG);

export function fakeModelInfo(options: FakeDeviceOptions): ModelInfo {
  const { model = "fake", mdev = false, log, sharedTracker = false, migration } = options;
  return {
    model,
    stateVersion: 1,
    mdev,
    regions: [{ index: REGION.CONFIG, name: "config", bytes: CONFIG_BYTES, readable: true, writeable: true }],
    irqs: [],
    migration: migration === undefined ? { stopCopy: true, p2p: true, preCopy: false } : migration,
    tracking: { tracksInternally: log !== undefined, tracksThroughContainer: sharedTracker },
    dmaLogging:
      log === undefined
        ? null
        : { pageSizes: [PAGE_SIZE], maxRanges: 16, addressWidth: 52, readableWhen: "always", ...log },
    separatesP2p: true,
  };
}

/** What the driver of a fake device finds where others have a device on a thread: a device whose DMA a test does. */
class FakeClient implements DeviceSide {
  readonly id: string;
  readonly info: ModelInfo;
  readonly failure = undefined;
  pins: PinService | null = null;
  interrupts = 0;
  mode: RunMode = "stopped";
  /** Pages that a test wants to stay pinned. */
  readonly kept = new Set<PageNumber>();
  readonly contents: FakeContents = { state: new Uint8Array(0), facts: {} };
  readonly #port: FakePort;
  readonly #config = Uint8Array.from(POWER_ON_CONFIG);

  constructor(options: FakeDeviceOptions, port: FakePort) {
    this.id = options.id;
    this.info = fakeModelInfo(options);
    this.#port = port;
  }

  async setMode(mode: RunMode): Promise<void> {
    this.mode = mode;
  }

  async save(): Promise<Uint8Array> {
    return encodeRecords([
      { tag: TAG.CONFIG, optional: false, data: Uint8Array.from(this.#config) },
      { tag: TAG.STATE, optional: false, data: this.contents.state },
    ]);
  }

  async load(state: Uint8Array): Promise<void> {
    const [config, own] = decodeRecords(state);
    this.#config.set(config.data);
    this.contents.state = Uint8Array.from(own.data);
  }

  async reset(): Promise<void> {
    this.#config.set(POWER_ON_CONFIG);
  }

  async regionRead(_region: number, offset: number, bytes: number): Promise<Uint8Array> {
    return this.#config.slice(offset, offset + bytes);
  }

  async regionWrite(_region: number, offset: number, data: Uint8Array): Promise<void> {
    for (const [i, byte] of data.entries()) {
      const at = offset + i;
      this.#config[at] = (byte & ~FIXED_CONFIG[at]) | (POWER_ON_CONFIG[at] & FIXED_CONFIG[at]);
    }
  }

  get logging(): boolean {
    return this.#port.kind === "iommu" && this.#port.log !== null;
  }

  async setLog(log: PostedDmaLog | null): Promise<void> {
    if (this.#port.kind === "iommu") this.#port.log = log === null ? null : DmaLog.open(log);
  }

  async setTracker(tracker: PostedTracker | null): Promise<void> {
    if (this.#port.kind === "pins") this.#port.pins.setTracker(tracker);
  }

  async dropPins({ page, pages }: { page: PageNumber; pages: number }): Promise<void> {
    if (this.#port.kind === "pins") this.#port.pins.drop(page, pages);
    for (let i = 0; i < pages; i++) this.kept.delete(page + i);
  }

  async facts(): Promise<ShapeFacts> {
    return this.contents.facts;
  }

  async counters(): Promise<Record<string, number>> {
    return {};
  }

  async trail(): Promise<null> {
    return null;
  }

  async remove(): Promise<void> {}
}

/** What is in a fake device. */
export interface FakeContents {
  /** What moves with its state, besides its configuration space: whole words of four bytes. */
  state: Uint8Array;
  /** What a guest can tell it by, besides what every device has. */
  facts: ShapeFacts;
}

/** What a test can do with a fake device besides what anybody can. */
export interface FakeDeviceSide {
  readonly script: Script<EmulatedVfioDevice>;
  /** Its id in the iommufd that it is bound to. */
  readonly deviceId: ObjectId;
  readonly contents: FakeContents;
  /** Its own log is on. */
  readonly logging: boolean;
  /** The states that it was asked for and went to, from RUNNING on. */
  readonly states: readonly MigState[];
  /** Writes to one page, by DMA, whatever state it is in. */
  dma(page: PageNumber): DmaFault | null;
  /**
   * Writes to one page, by DMA. An mdev pins it first, and lets it go unless told to keep it.
   * @throws Error where it isn't running, or reaches nothing there
   */
  write(page: PageNumber, options?: { readonly keepPinned?: boolean }): Promise<void>;
  /** An mdev lets go of the pages that it keeps pinned. */
  unpin(): Promise<void>;
}

export type FakeDevice = EmulatedVfioDevice & FakeDeviceSide;

const WRITTEN = Uint8Array.of(1);

/** Opens a device of a fake host: the emulated host's driver, over a device that does what a test says. */
export async function openFakeDevice(
  options: FakeDeviceOptions,
  wiring: Omit<Parameters<typeof EmulatedVfioDevice.open>[0], "client" | "port"> & { readonly port: FakePort },
): Promise<FakeDevice> {
  const { port } = wiring;
  const client = new FakeClient(options, port);
  const device = scripted(
    await EmulatedVfioDevice.open({ ...wiring, client, port: port.kind === "iommu" ? port.port : port.pins.port }),
  );
  const { kept } = client;

  async function unpin(page: PageNumber): Promise<void> {
    if (port.kind === "pins") port.pins.drop(page, 1);
    await client.pins?.unpin({ page, pages: 1 });
  }

  const dma = (page: PageNumber): DmaFault | null =>
    port.kind === "iommu" ? port.write(page) : port.pins.write(page, 0, WRITTEN, 0, 1);

  async function write(page: PageNumber, { keepPinned = false } = {}): Promise<void> {
    if (client.mode !== "running") throw new Error(`${client.id} is not running`);
    const pinned = port.kind === "pins" && !kept.has(page) ? await client.pins?.pin({ page, pages: 1 }) : undefined;
    if (port.kind === "pins" && pinned !== undefined && "runs" in pinned)
      for (const run of pinned.runs) port.pins.add(run);
    const fault = dma(page);
    if (keepPinned) kept.add(page);
    else if (!kept.has(page) && pinned !== undefined) await unpin(page);
    if (fault !== null) throw new Error(`${client.id} can't reach ${iovaOf(page)}: ${fault}`);
  }

  const side = {
    contents: client.contents,
    dma,
    write,
    async unpin(): Promise<void> {
      for (const page of kept) await unpin(page);
      kept.clear();
    },
  };
  Object.defineProperties(device, {
    deviceId: { get: () => device.script.calls.findLast(({ operation }) => operation === "bind")?.result },
    logging: { get: () => client.logging },
    states: {
      get: (): MigState[] => [
        "RUNNING",
        ...device.script.calls.flatMap(({ operation, args: [next] }): MigState[] => {
          if (operation === "setState") return [next as MigState];
          return operation === "reset" ? ["RUNNING"] : [];
        }),
      ],
    },
  });
  return Object.assign(device, side) as unknown as FakeDevice;
}
