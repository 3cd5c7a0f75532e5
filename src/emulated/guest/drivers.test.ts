import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { clockMonotonic } from "../../devices/clock.js";
import { DmaEngine } from "../../devices/dma-engine/dma-engine.js";
import { FlatContext } from "../../devices/flat-host.test.helper.js";
import type { DeviceModel, DmaPort } from "../../devices/model.js";
import { DiskFile } from "../../devices/nvme/driver.test.helper.js";
import { Nvme } from "../../devices/nvme/nvme.js";
import type { DrivenModelName } from "../../host/description.js";
import { MiB, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { createGuestMemory } from "../../memory/guest-memory.js";
import type { Driver, DriverHost } from "./driver.js";
import { createDriver, minDriverPages } from "./drivers.js";

/*
 * The drivers over the models themselves, one step at a time: what they count must show whatever is done to a request.
 */

const SEED = 46368;
const FIRST_PAGE = 256;

const disposables: Disposable[] = [];
afterEach(() => {
  for (const disposable of disposables.splice(0).reverse()) disposable[Symbol.dispose]();
});

/** A guest with one device and its driver, each of which can be replaced by one that goes on. */
class Rig {
  readonly memory = createGuestMemory(8 * MiB);
  readonly context = new FlatContext(this.memory);
  readonly model: DrivenModelName;
  readonly #disk: DiskFile | undefined;
  device: DeviceModel;
  driver: Driver;

  constructor(model: DrivenModelName) {
    this.model = model;
    this.#disk = model === "nvme" ? new DiskFile({ bytes: MiB }) : undefined;
    this.device = this.#createDevice(false);
    this.driver = this.#createDriver();
    disposables.push({
      [Symbol.dispose]: () => {
        this.device[Symbol.dispose]();
        this.#disk?.[Symbol.dispose]();
      },
    });
  }

  static async start(model: DrivenModelName): Promise<Rig> {
    const rig = new Rig(model);
    await rig.device.start(rig.context);
    rig.device.regionWrite(7, 4, Uint8Array.of(6, 0));
    const timer = setInterval(() => rig.device.run(1), 1);
    try {
      await rig.driver.start();
    } finally {
      clearInterval(timer);
    }
    return rig;
  }

  /** The driver works, then its doorbells reach the device, and that works. */
  async step({ device = true }: { device?: boolean } = {}): Promise<void> {
    this.driver.slice();
    await this.driver.settle();
    if (device) this.device.run(0);
  }

  async drain(): Promise<Awaited<ReturnType<Driver["report"]>>> {
    this.driver.draining = true;
    for (let i = 0; i < 2000 && this.driver.busy > 0; i++) {
      await this.step();
      this.device.run(5);
    }
    this.driver.slice();
    return this.driver.report();
  }

  /** Another driver and another device go on. */
  async move(): Promise<void> {
    await this.driver.pause();
    const driver = this.driver.save();
    this.device.quiesce();
    const target = this.#createDevice(true);
    await target.start(this.context);
    target.load(this.device.save());
    this.device[Symbol.dispose]();
    this.device = target;
    this.driver = this.#createDriver();
    this.driver.load(JSON.parse(JSON.stringify(driver)));
  }

  #createDevice(incoming: boolean): DeviceModel {
    return this.#disk === undefined
      ? new DmaEngine({ memory: new Uint8Array(256 * 1024) })
      : new Nvme({ file: this.#disk.path, blockBytes: 512, incoming });
  }

  #createDriver(): Driver {
    const buffers = [{ firstPage: FIRST_PAGE, pages: minDriverPages(this.model) + 20 }];
    return createDriver({ device: "d0", model: this.model, vcpu: 0, rate: 1000, buffers }, this.#host());
  }

  #host(): DriverHost {
    const region = (page: PageNumber) => {
      const found = this.memory.regions.find(({ firstPage, pages }) => page >= firstPage && page < firstPage + pages);
      if (found === undefined) throw new RangeError(`page ${page} is no RAM`);
      return { arena: this.memory.arenas[found.arena], at: (found.arenaPage + page - found.firstPage) * PAGE_SIZE };
    };
    let now = clockMonotonic();
    return {
      store(page, offset, data) {
        const { arena, at } = region(page);
        arena.u8.set(data, at + offset);
      },
      page(page) {
        const { arena, at } = region(page);
        return arena.u8.subarray(at, at + PAGE_SIZE);
      },
      word(page, offset) {
        const { arena, at } = region(page);
        return arena.u32[(at + offset) / 4];
      },
      // Time that passes by steps: the rate is no part of these tests.
      now: () => (now += 1_000_000n),
      read: async (index, offset) => {
        const data = Buffer.alloc(4);
        this.device.regionRead(index, offset, data);
        return data.readUInt32LE();
      },
      write: async (index, writes) => {
        for (const { offset, value } of writes) {
          const data = Buffer.alloc(4);
          data.writeUInt32LE(value);
          this.device.regionWrite(index, offset, data);
        }
      },
      counters: async () => this.device.counters(),
    };
  }
}

/** Of a completion, the two halves that devices write. */
const HALF_RECORD = 8;

/** Calls `change` with a copy of what the device is about to write; false: it is not written. */
function meddle(port: DmaPort, change: (data: Uint8Array) => boolean): void {
  const write = port.write.bind(port);
  port.write = (page, offset, source, from, bytes) => {
    const data = source.slice(from, from + bytes);
    return change(data) ? write(page, offset, data, 0, bytes) : null;
  };
}

/** Where a completion names its request: in which of its halves, at which byte, in how many bytes. */
const NAME = { nvme: { half: 1, at: 4, bytes: 2 }, "dma-engine": { half: 0, at: 0, bytes: 4 } } as const;

const MODELS = ["nvme", "dma-engine"] as const;

describe.runIf(process.platform === "linux").each(MODELS)("the driver of %s", (model) => {
  it("has each request done and completed once, and finds nothing wrong", async () => {
    const rig = await Rig.start(model);
    for (let i = 0; i < 300; i++) await rig.step();
    const { queued, completed, completedHere, problems } = await rig.drain();
    expect(problems).toEqual([]);
    expect(queued).toBeGreaterThan(30);
    expect([completed, completedHere]).toEqual([queued, queued]);
  });

  it("goes on elsewhere with its requests, wherever in queued I/O it moves", async () => {
    const step = fc.constantFrom("step", "step", "step", "queue", "device", "move");
    let all = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 60 }), async (steps) => {
        const rig = await Rig.start(model);
        for (const kind of steps) {
          if (kind === "move") await rig.move();
          else if (kind === "device") rig.device.run(0);
          else await rig.step({ device: kind === "step" });
        }
        const { queued, completed, problems } = await rig.drain();
        expect(problems).toEqual([]);
        expect(completed).toBe(queued);
        all += queued;
      }),
      { numRuns: 25, seed: SEED },
    );
    expect(all).toBeGreaterThan(200);
  });

  it("finds completions that were lost", async () => {
    const rig = await Rig.start(model);
    let halves = 0;
    // The fifth, and with it those that follow, since a driver takes them in order.
    meddle(rig.context.dma, (data) => data.byteLength !== HALF_RECORD || Math.floor(halves++ / 2) !== 4);
    for (let i = 0; i < 5; i++) await rig.step();
    const { queued, completed, problems } = await rig.drain();
    expect(completed).toBe(4);
    expect(problems).toEqual([
      { kind: "lost", count: queued - 4 },
      { kind: "done and not completed", count: queued - 4 },
    ]);
  });

  it("finds a completion that came twice, and the one in whose place it came", async () => {
    const rig = await Rig.start(model);
    const { half, at, bytes } = NAME[model];
    const names: Uint8Array[] = [];
    let halves = 0;
    meddle(rig.context.dma, (data) => {
      if (data.byteLength !== HALF_RECORD || halves++ % 2 !== half) return true;
      names.push(data.slice(at, at + bytes));
      if (names.length === 7) data.set(names[5], at);
      return true;
    });
    for (let i = 0; i < 50; i++) await rig.step();
    const { queued, completed, problems } = await rig.drain();
    expect(completed).toBe(queued - 1);
    expect(problems).toEqual([
      { kind: "lost", count: 1 },
      { kind: "completed twice", count: 1 },
      { kind: "done and not completed", count: 1 },
    ]);
  });

  it("finds data that is not what it should be", async () => {
    const rig = await Rig.start(model);
    // By then most of the disk is known.
    for (let i = 0; i < 600; i++) await rig.step();
    let pieces = 0;
    meddle(rig.context.dma, (data) => {
      if (data.byteLength === PAGE_SIZE && ++pieces % 50 === 0) data[4000] ^= 1;
      return true;
    });
    for (let i = 0; i < 600; i++) await rig.step();
    const { problems } = await rig.drain();
    expect(problems).toEqual([{ kind: "done wrongly", count: expect.any(Number) }]);
    expect(problems[0].count).toBeGreaterThan(0);
    expect(problems[0].count).toBeLessThanOrEqual(Math.floor(pieces / 50));
  });

  it("finds requests that the device failed", async () => {
    const rig = await Rig.start(model);
    const { dma } = rig.context;
    const { write } = dma;
    let pieces = 0;
    dma.write = (page, offset, source, from, bytes) =>
      bytes === PAGE_SIZE && ++pieces === 6 ? "not-mapped" : write.call(dma, page, offset, source, from, bytes);
    for (let i = 0; i < 300; i++) await rig.step();
    expect((await rig.drain()).problems).toContainEqual({ kind: "failed", count: 1 });
  });

  it("finds that the device has done more than it was asked to", async () => {
    const rig = await Rig.start(model);
    for (let i = 0; i < 20; i++) await rig.step();
    const counters = rig.device.counters.bind(rig.device);
    const counted = model === "nvme" ? "reads" : "chains";
    rig.device.counters = () => ({ ...counters(), [counted]: counters()[counted] + 1 });
    expect((await rig.drain()).problems).toEqual([{ kind: "done and not completed", count: 1 }]);
  });

  it("stops where its device doesn't answer, and says so", async () => {
    const rig = await Rig.start(model);
    await rig.step();
    rig.device.regionWrite = () => {
      throw new Error("gone");
    };
    for (let i = 0; i < 5; i++) await rig.step();
    expect((await rig.drain()).problems).toContainEqual({ kind: "driver stopped", count: 1 });
  });
});

describe.runIf(process.platform === "linux")("a driver's state", () => {
  it("that can't be is refused", () => {
    for (const model of MODELS) {
      const { driver } = new Rig(model);
      const state = driver.save();
      for (const own of [null, {}, { ...(state.own as object), open: [{}] }, { ...(state.own as object), tail: -1 }]) {
        expect(() => driver.load({ ...state, own })).toThrow();
      }
      driver.load(state);
    }
  });
});
