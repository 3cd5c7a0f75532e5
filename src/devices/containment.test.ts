import { afterEach, describe, expect, it } from "vitest";
import { MiB, PAGE_SIZE } from "../memory/address.js";
import { Containment } from "./containment.js";
import { DmaEngine } from "./dma-engine/dma-engine.js";
import { CONTROL, REGISTER as ENGINE, STATUS as ENGINE_STATUS, HALT } from "./dma-engine/spec.js";
import type { DeviceContext, DeviceModel, DmaPort } from "./model.js";
import { DiskFile } from "./nvme/driver.test.helper.js";
import { Nvme } from "./nvme/nvme.js";
import { CC, CSTS, DOORBELLS, NSSR_RESET, REGISTER as NVME } from "./nvme/spec.js";
import { type PciIds, PciModel, pciRegions, REGION, REGISTER, STATUS } from "./pci-model.js";

/** A device's host in which a bug shows: every DMA throws while `broken`. */
class BuggyHost implements DeviceContext {
  broken = false;
  readonly p2pQuiesced = false;
  readonly interrupts: number[] = [];
  /** What happens in the middle of the next DMA. */
  during: () => void = () => {};
  readonly dma: DmaPort = {
    read: (_page, _offset, target, to, bytes) => {
      target.fill(0, to, to + bytes);
      return this.#access();
    },
    write: () => this.#access(),
  };

  raiseIrq(_index: number, vector: number): void {
    this.interrupts.push(vector);
  }
  now(): bigint {
    return BigInt(Math.round(performance.now() * 1e6));
  }
  async pin(): Promise<null> {
    return null;
  }
  async unpin(): Promise<void> {}
  fail(): void {
    throw new Error("a model that fails by itself has no place in this test");
  }

  #access(): null {
    const { during } = this;
    this.during = () => {};
    during();
    if (this.broken) throw new Error("a bug");
    return null;
  }
}

/** A workload that writes a unit in each slice. */
class Writer extends PciModel {
  constructor() {
    const ids: PciIds = { vendor: 1, device: 2, classCode: 0 };
    super(
      {
        model: "writer",
        stateVersion: 1,
        mdev: false,
        regions: pciRegions(0),
        irqs: [{ index: 2, name: "msix", count: 1 }],
        migration: null,
        tracking: { tracksInternally: false, tracksThroughContainer: false },
        dmaLogging: null,
        separatesP2p: false,
      },
      ids,
      { incarnation: 1, seed: 1, memory: null, buffers: [{ firstPage: 1, pages: 4 }], p2p: [] },
      { id: "writer", rate: 100_000 },
    );
  }

  protected override work(): number {
    this.dma.beginSlice();
    this.dma.write(8);
    return 0;
  }
}

interface Driven {
  readonly model: DeviceModel;
  readonly contained: Containment;
  readonly host: BuggyHost;
  readonly told: string[];
  write(offset: number, value: number, region?: number): void;
  read(offset: number, region?: number): number;
}

const disposables: Disposable[] = [];
afterEach(() => {
  for (const disposable of disposables.splice(0).reverse()) disposable[Symbol.dispose]();
});

async function drive(model: DeviceModel): Promise<Driven> {
  disposables.push(model);
  const host = new BuggyHost();
  const told: string[] = [];
  const contained = new Containment(model, {
    failed: (reason, guestSees) => told.push(`${guestSees ? "" : "unseen "}${reason.split("\n")[0]}`),
    revived: () => told.push("revived"),
  });
  await model.start(host);
  return {
    model,
    contained,
    host,
    told,
    write(offset, value, region = REGION.BAR0) {
      contained.regionWrite(region, offset, new Uint8Array(Uint32Array.of(value).buffer));
    },
    read(offset, region = REGION.BAR0) {
      const bytes = new Uint8Array(4);
      contained.regionRead(region, offset, bytes);
      return new DataView(bytes.buffer).getUint32(0, true);
    },
  };
}

/** What a guest does with a device, and how it sees that it has failed. */
interface Kind {
  make(): DeviceModel;
  /** Makes it ready, and gives it something to do that takes DMA. */
  start(device: Driven): void;
  hasFailed(device: Driven): boolean;
  readonly resets: { readonly [name: string]: (device: Driven) => void };
}

const DOORBELL_REGION = 2;
const FLR = { offset: 0x68, value: 0x8000 };

const kinds: { [name: string]: Kind } = {
  nvme: {
    make() {
      const disk = new DiskFile({ bytes: MiB });
      disposables.push(disk);
      return new Nvme({ file: disk.path, blockBytes: 512, incoming: false });
    },
    start({ write }) {
      write(NVME.AQA, (7 << 16) | 7);
      write(NVME.ASQ, PAGE_SIZE);
      write(NVME.ACQ, 2 * PAGE_SIZE);
      write(NVME.CC, CC.EN);
      write(DOORBELLS, 1);
    },
    hasFailed: ({ read }) => (read(NVME.CSTS) & CSTS.CFS) !== 0,
    resets: {
      "clearing and setting CC.EN": ({ write }) => write(NVME.CC, 0),
      "a subsystem reset": ({ write }) => write(NVME.NSSR, NSSR_RESET),
      "a function level reset": ({ write }) => write(FLR.offset, FLR.value, REGION.CONFIG),
      "its host": ({ contained }) => contained.reset(),
    },
  },
  "dma-engine": {
    make: () => new DmaEngine({ memory: new Uint8Array(8192) }),
    start({ write }) {
      write(ENGINE.RING_BASE, PAGE_SIZE);
      write(ENGINE.RING_ENTRIES, 8);
      write(ENGINE.COMPLETION_BASE, 2 * PAGE_SIZE);
      write(ENGINE.COMPLETION_ENTRIES, 8);
      write(ENGINE.CONTROL, CONTROL.ENABLE);
      write(0, 1, DOORBELL_REGION);
    },
    hasFailed: ({ read }) =>
      (read(ENGINE.STATUS) & ENGINE_STATUS.HALTED) !== 0 && read(ENGINE.ERROR) === HALT.INTERNAL_ERROR,
    resets: {
      "clearing ENABLE": ({ write }) => write(ENGINE.CONTROL, 0),
      "a function level reset": ({ write }) => write(FLR.offset, FLR.value, REGION.CONFIG),
      "its host": ({ contained }) => contained.reset(),
    },
  },
  "a workload's device": {
    make: () => new Writer(),
    start: () => {},
    hasFailed: ({ read }) => (read(REGISTER.STATUS) & STATUS.FAILED) !== 0,
    resets: {
      "its reset register": ({ write }) => write(REGISTER.STATUS, STATUS.RESET),
      "its host": ({ contained }) => contained.reset(),
    },
  },
};

const cases = Object.entries(kinds).flatMap(([name, kind]) =>
  Object.entries(kind.resets).map(([how, reset]) => ({ name, how, kind, reset })),
);

/** Slices of work, so many that a token bucket has filled meanwhile. */
async function work({ contained }: Driven): Promise<void> {
  for (let i = 0; i < 20; i++) {
    contained.run(1);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

describe.runIf(process.platform === "linux")("a model that throws at work", () => {
  it.each(cases)("has failed, shows it, and is revived: $name, by $how", async ({ kind, reset }) => {
    const device = await drive(kind.make());
    kind.start(device);
    expect(kind.hasFailed(device)).toBe(false);
    device.host.broken = true;
    await work(device);
    expect(device.told).toEqual(["Error: a bug"]);
    expect(device.contained.failure).toContain("a bug");
    expect(kind.hasFailed(device)).toBe(true);
    expect(device.contained.run(1)).toBe(Number.POSITIVE_INFINITY);

    device.host.broken = false;
    reset(device);
    expect(device.told).toEqual(["Error: a bug", "revived"]);
    expect(device.contained.failure).toBeUndefined();
    kind.start(device);
    expect(kind.hasFailed(device)).toBe(false);
    let accesses = 0;
    device.host.during = () => accesses++;
    await work(device);
    expect(accesses).toBe(1);
    expect(device.told).toHaveLength(2);
  });

  it.each(cases.filter(({ name, how }) => name !== "a workload's device" && how !== "its host"))(
    "is as reset at once where its guest reset it in the middle of that: $name, by $how",
    async ({ kind, reset }) => {
      const device = await drive(kind.make());
      kind.start(device);
      device.host.broken = true;
      device.host.during = () => reset(device);
      device.contained.run(1);
      expect(device.told).toEqual(["Error: a bug", "revived"]);
      expect(kind.hasFailed(device)).toBe(false);
      device.host.broken = false;
      kind.start(device);
      let accesses = 0;
      device.host.during = () => accesses++;
      device.contained.run(1);
      expect(accesses).toBe(1);
    },
  );

  it.each(Object.entries(kinds))("tells of each failure once: %s", async (_, kind) => {
    const device = await drive(kind.make());
    const [reset] = Object.values(kind.resets);
    device.host.broken = true;
    for (let i = 0; i < 3; i++) {
      kind.start(device);
      await work(device);
      device.contained.fail("again");
      reset(device);
    }
    expect(device.told).toEqual(["Error: a bug", "revived", "Error: a bug", "revived", "Error: a bug", "revived"]);
  });
});

describe("a model that throws at a register", () => {
  /** A model whose registers throw, which shows failures or does not. */
  function throwing(shows: boolean): DeviceModel {
    class Throwing extends Writer {
      override regionRead(): void {
        throw new Error("a read");
      }
      override regionWrite(): void {
        throw new Error("a write");
      }
    }
    const model = new Throwing();
    if (!shows) Object.defineProperties(model, { hasFailed: { value: undefined }, showFailure: { value: undefined } });
    return model;
  }

  it("answers with ones, takes writes, and has failed", async () => {
    const device = await drive(throwing(true));
    expect(device.read(0)).toBe(0xffff_ffff);
    device.write(0, 1);
    expect(device.told).toEqual(["Error: a read"]);
    expect(device.contained.failure).toContain("a read");
  });

  it("refuses the access where it can't show that it has failed, and is its host's to reset", async () => {
    const device = await drive(throwing(false));
    expect(() => device.write(0, 1)).toThrowError(expect.objectContaining({ code: "EIO" }));
    expect(() => device.read(0)).toThrowError(expect.objectContaining({ code: "EIO" }));
    expect(device.told).toEqual(["unseen Error: a write"]);
    device.contained.reset();
    expect(device.told).toEqual(["unseen Error: a write", "revived"]);
  });
});
