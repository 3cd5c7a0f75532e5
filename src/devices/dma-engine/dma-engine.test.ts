import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PAGE_SIZE } from "../../memory/address.js";
import type { DmaPort } from "../model.js";
import { DmaEngine } from "./dma-engine.js";
import { createEngine, type DescriptorFields, EngineGuest, LOCAL_BYTES } from "./driver.test.helper.js";
import {
  CAPABILITIES,
  CHAIN_STATUS,
  CONTROL,
  DOORBELL,
  DOORBELL_BYTES,
  FLAG,
  HALT,
  ID,
  MAX_LENGTH,
  MAX_RING_ENTRIES,
  MSIX_PENDING,
  MSIX_TABLE,
  OPCODE,
  REGISTER,
  STATUS,
  VECTOR,
} from "./spec.js";

const BAR2 = 2;
const SEED = 20260;

/** Another device goes on where the guest's has stopped. */
async function move(guest: EngineGuest): Promise<void> {
  const target = createEngine();
  await target.start(guest.context);
  guest.device.quiesce();
  target.load(guest.device.save());
  guest.device = target;
}

/** Lets the device work until it has nothing to do. */
function finish({ device }: EngineGuest): void {
  while (device.run(1) === 0);
}

const copy = (source: number, destination: number, length: number, flags = 0): DescriptorFields => ({
  opcode: OPCODE.COPY,
  source,
  destination,
  length,
  flags,
});
const fill = (pattern: bigint, destination: number, length: number, flags = 0): DescriptorFields => ({
  opcode: OPCODE.FILL,
  source: pattern,
  destination,
  length,
  flags,
});

describe("a DMA engine's function", () => {
  it("is a PCI function with two 64-bit BARs and MSI-X, and does DMA only while its driver lets it", async () => {
    const guest = await EngineGuest.start();
    expect(guest.config(0x00, 4)).toBe(0x444d_1234);
    expect(guest.config(0x09, 3)).toBe(0x08_80_00);
    for (const [bar, bytes] of [
      [0x10, 0x4000],
      [0x18, LOCAL_BYTES],
    ]) {
      guest.setConfig(bar, 0xffff_ffff, 4);
      guest.setConfig(bar + 4, 0xffff_ffff, 4);
      expect(guest.config(bar, 4)).toBe((~(bytes - 1) | 0x4) >>> 0);
      expect(guest.config(bar + 4, 4)).toBe(0xffff_ffff);
    }
    expect(guest.config(0x20, 4)).toBe(0);
    expect([guest.config(0x52, 2), guest.config(0x54, 4), guest.config(0x58, 4)]).toEqual([
      1,
      MSIX_TABLE,
      MSIX_PENDING,
    ]);
    expect(guest.device.busMaster).toBe(true);
    guest.setConfig(0x04, 0x2, 2);
    expect(guest.device.busMaster).toBe(false);
  });

  it("has registers that tell what it is, and keeps its MSI-X table as it was written", async () => {
    const guest = await EngineGuest.start();
    expect(guest.register(REGISTER.ID)).toBe(ID);
    expect(guest.register(REGISTER.CAPABILITIES)).toBe(CAPABILITIES);
    expect(2 ** (CAPABILITIES & 0xff)).toBe(MAX_RING_ENTRIES);
    expect(2 ** (CAPABILITIES >> 8)).toBe(MAX_LENGTH);
    expect(guest.register(REGISTER.LOCAL_BYTES)).toBe(LOCAL_BYTES);
    expect(guest.register(0x50)).toBe(0);
    guest.setRegister(MSIX_TABLE + 0x10, 0xfee0_0000);
    expect(guest.register(MSIX_TABLE + 0x10)).toBe(0xfee0_0000);
    expect(guest.register(MSIX_PENDING)).toBe(0);
  });

  it.each([0x3000, 4096, 2 ** 29])("has no BAR 2 of %i bytes", (bytes) => {
    expect(() => new DmaEngine({ memory: new Uint8Array(bytes) })).toThrow(/power of two|a BAR of/);
  });

  it("is as after power-on when a function level reset was asked for", async () => {
    const guest = await EngineGuest.start();
    guest.setLocal(DOORBELL_BYTES, Uint8Array.of(1, 2, 3));
    guest.execute(fill(1n, guest.allocate(PAGE_SIZE), 64));
    guest.setConfig(0x68, 0x8000, 2);
    for (const register of [
      REGISTER.CONTROL,
      REGISTER.STATUS,
      REGISTER.RING_BASE,
      REGISTER.RING_ENTRIES,
      REGISTER.CHAINS,
    ])
      expect(guest.register(register)).toBe(0);
    expect(guest.device.busMaster).toBe(false);
    expect(guest.local(DOORBELL_BYTES, 3)).toEqual(new Uint8Array(3));
    expect(Buffer.compare(guest.device.save(), createEngine().save())).toBe(0);
  });
});

describe("a DMA engine's work", () => {
  it("copies, whatever the alignment, and touches nothing beside the destination", async () => {
    const guest = await EngineGuest.start();
    for (const [from, to, length] of [
      [0, 0, PAGE_SIZE],
      [1, 4095, 3],
      [4095, 1, 2 * PAGE_SIZE + 2],
      [100, 200, 1],
      [8, 16, 5 * PAGE_SIZE - 8],
    ]) {
      const source = guest.random(6 * PAGE_SIZE, length) + from;
      const page = guest.allocate(8 * PAGE_SIZE);
      guest.at(page, 8 * PAGE_SIZE).fill(0xee);
      expect(guest.execute(copy(source, page + to, length))).toMatchObject({
        status: 0,
        bytes: length,
        descriptors: 1,
      });
      expect(guest.equal(source, page + to, length)).toBe(true);
      expect(guest.at(page, to).every((byte) => byte === 0xee)).toBe(true);
      const behind = page + to + length;
      expect(guest.at(behind, page + 8 * PAGE_SIZE - behind).every((byte) => byte === 0xee)).toBe(true);
    }
  });

  it("fills with a pattern of eight bytes that begins at the destination", async () => {
    const guest = await EngineGuest.start();
    const page = guest.allocate(3 * PAGE_SIZE);
    expect(guest.execute(fill(0x0807_0605_0403_0201n, page + 4093, 4107))).toMatchObject({ status: 0, bytes: 4107 });
    const filled = guest.at(page + 4093, 4107);
    expect(filled.every((byte, i) => byte === 1 + (i % 8))).toBe(true);
    expect(guest.at(page, 4093).every((byte) => byte === 0)).toBe(true);
    expect(guest.at(page + 8200, 4088).every((byte) => byte === 0)).toBe(true);
  });

  it("moves data to, from and inside its local memory", async () => {
    const guest = await EngineGuest.start();
    const source = guest.random(3 * PAGE_SIZE);
    const target = guest.allocate(3 * PAGE_SIZE);
    const local = FLAG.SOURCE_LOCAL | FLAG.DESTINATION_LOCAL;
    const chain = [
      copy(source, 0x1ff0, 3 * PAGE_SIZE, FLAG.DESTINATION_LOCAL),
      copy(0x1ff0, 0x8001, 3 * PAGE_SIZE, local),
      copy(0x8001, target, 3 * PAGE_SIZE, FLAG.SOURCE_LOCAL),
      fill(0xffn, LOCAL_BYTES - 8, 8, FLAG.DESTINATION_LOCAL),
    ];
    expect(guest.execute(...chain)).toMatchObject({ status: 0, descriptors: 4 });
    expect(guest.equal(source, target, 3 * PAGE_SIZE)).toBe(true);
    expect(guest.local(LOCAL_BYTES - 8, 8)).toEqual(Uint8Array.of(0xff, 0, 0, 0, 0, 0, 0, 0));
  });

  it("writes one record for a chain, with the last descriptor's tag", async () => {
    const guest = await EngineGuest.start();
    const page = guest.allocate(PAGE_SIZE);
    const tag = guest.queueChain([fill(1n, page, 8), fill(2n, page + 8, 8), fill(3n, page + 16, 8)]);
    guest.ringDoorbell();
    finish(guest);
    expect(guest.take()).toEqual([{ tag, bytes: 8, descriptors: 3, status: 0, pass: 1 }]);
    expect(guest.device.counters()).toMatchObject({ chains: 1, failedChains: 0, bytes: 24 });
  });

  it("waits inside a chain for descriptors that come later", async () => {
    const guest = await EngineGuest.start();
    const page = guest.allocate(PAGE_SIZE);
    guest.queue(fill(1n, page, 8, FLAG.CHAIN));
    guest.ringDoorbell();
    finish(guest);
    expect(guest.take()).toEqual([]);
    expect(guest.register(REGISTER.STATUS)).toBe(STATUS.READY | STATUS.BUSY);
    expect(guest.execute(fill(2n, page + 8, 8))).toMatchObject({ status: 0, descriptors: 2 });
    expect(guest.register(REGISTER.STATUS)).toBe(STATUS.READY);
  });

  it("begins no chain whose record has no room, and goes on when there is some", async () => {
    const guest = await EngineGuest.start({ entries: 16, completions: 3 });
    const page = guest.allocate(PAGE_SIZE);
    const tags = Array.from({ length: 5 }, (_, i) => guest.queue(fill(BigInt(i), page + i * 8, 8)));
    guest.ringDoorbell();
    finish(guest);
    expect(guest.register(REGISTER.RING_HEAD)).toBe(2);
    expect(guest.at(page + 16, 8)).toEqual(new Uint8Array(8));
    const seen: number[] = [];
    for (let round = 0; round < 5; round++) {
      seen.push(...guest.take(1).map(({ tag }) => tag));
      finish(guest);
    }
    expect(seen).toEqual(tags);
  });

  it("interrupts for chains that ask for it, once for all of a slice, and for those that failed", async () => {
    const guest = await EngineGuest.start();
    const page = guest.allocate(PAGE_SIZE);
    guest.execute(fill(1n, page, 8));
    expect(guest.context.vectors).toEqual([]);
    for (let i = 0; i < 3; i++) guest.queue(fill(1n, page, 8, FLAG.INTERRUPT));
    guest.ringDoorbell();
    finish(guest);
    expect(guest.context.vectors).toEqual([VECTOR.COMPLETION]);
    guest.execute({ opcode: 9 });
    expect(guest.context.vectors).toEqual([VECTOR.COMPLETION, VECTOR.COMPLETION]);
  });

  it("stops at its budget in the middle of a descriptor, and goes on where it was", async () => {
    const guest = await EngineGuest.start();
    const bytes = 4 * 2 ** 20;
    const page = guest.allocate(bytes);
    guest.queue(fill(0x1111_1111_1111_1111n, page, bytes));
    guest.ringDoorbell();
    // A fetch, then a piece for each call.
    for (let pieces = 0; pieces < 4; pieces++) expect(guest.device.run(0)).toBe(0);
    expect(guest.device.counters().bytes).toBe(3 * PAGE_SIZE);
    expect(guest.register(REGISTER.STATUS)).toBe(STATUS.READY | STATUS.BUSY);
    finish(guest);
    expect(guest.take()).toMatchObject([{ status: 0, bytes }]);
    expect(guest.context.dma.written.length).toBe(bytes / PAGE_SIZE + 2);
  });
});

describe("a bad descriptor", () => {
  const cases: [string, DescriptorFields, number][] = [
    ["an unknown opcode", { opcode: 3 }, CHAIN_STATUS.BAD_OPCODE],
    ["an opcode of 0, as in memory that nobody wrote", { opcode: 0 }, CHAIN_STATUS.BAD_OPCODE],
    ["an unknown flag", { flags: 0x10 }, CHAIN_STATUS.BAD_FLAGS],
    ["a reserved field in use", { reserved: 1 }, CHAIN_STATUS.BAD_FLAGS],
    ["the other reserved field in use", { reserved2: 1 }, CHAIN_STATUS.BAD_FLAGS],
    ["a fill from local memory", { opcode: OPCODE.FILL, flags: FLAG.SOURCE_LOCAL }, CHAIN_STATUS.BAD_FLAGS],
    ["no length", { length: 0 }, CHAIN_STATUS.BAD_LENGTH],
    ["more than the largest length", { length: MAX_LENGTH + 1 }, CHAIN_STATUS.BAD_LENGTH],
    ["a source over the end of the bus", { source: 2n ** 64n - 8n }, CHAIN_STATUS.BAD_ADDRESS],
    ["a destination over the end of the bus", { destination: 2n ** 64n - 8n }, CHAIN_STATUS.BAD_ADDRESS],
    ["an overlap", { source: 0x20_0000, destination: 0x20_000f }, CHAIN_STATUS.BAD_ADDRESS],
    ["the doorbells as source", { source: 0, flags: FLAG.SOURCE_LOCAL }, CHAIN_STATUS.BAD_ADDRESS],
    [
      "a destination over the end of the local memory",
      { destination: LOCAL_BYTES - 8, flags: FLAG.DESTINATION_LOCAL },
      CHAIN_STATUS.BAD_ADDRESS,
    ],
    ["a source in no memory", { source: 2n ** 40n }, CHAIN_STATUS.SOURCE_FAULT],
    ["a destination in no memory", { destination: 2n ** 40n }, CHAIN_STATUS.DESTINATION_FAULT],
  ];
  it.each(cases)("with %s ends its chain, and nothing is written", async (_, fields, status) => {
    const guest = await EngineGuest.start();
    const source = guest.random(PAGE_SIZE);
    const destination = guest.allocate(PAGE_SIZE);
    const before = Buffer.from(guest.at(0x10_0000, 2 ** 20));
    const tag = guest.queue({ ...copy(source, destination, 16), ...fields });
    guest.ringDoorbell();
    finish(guest);
    expect(guest.take()).toEqual([{ tag, bytes: 0, descriptors: 0, status, pass: 1 }]);
    expect(guest.at(destination, 16)).toEqual(new Uint8Array(before.subarray(destination - 0x10_0000).subarray(0, 16)));
    expect(guest.execute(copy(source, destination, 16))).toMatchObject({ status: 0 });
  });

  it("skips the rest of its chain, and no more", async () => {
    const guest = await EngineGuest.start();
    const page = guest.allocate(PAGE_SIZE);
    guest.queueChain([fill(1n, page, 8), { ...fill(2n, page + 8, 8), length: 0, tag: 77 }, fill(3n, page + 16, 8)]);
    const next = guest.queue(fill(4n, page + 24, 8));
    guest.ringDoorbell();
    finish(guest);
    expect(guest.take()).toMatchObject([
      { tag: 77, descriptors: 1, status: CHAIN_STATUS.BAD_LENGTH },
      { tag: next, descriptors: 1, status: CHAIN_STATUS.SUCCESS },
    ]);
    expect([0, 8, 16, 24].map((at) => guest.at(page + at, 1)[0])).toEqual([1, 0, 0, 4]);
  });

  it("tells how much was written before a fault", async () => {
    const guest = await EngineGuest.start();
    const end = 16 * 2 ** 20;
    expect(guest.execute(fill(1n, end - 2 * PAGE_SIZE - 5, 3 * PAGE_SIZE))).toMatchObject({
      status: CHAIN_STATUS.DESTINATION_FAULT,
      bytes: 2 * PAGE_SIZE + 5,
    });
  });
});

describe("a DMA engine that halts", () => {
  it.each([
    ["a ring of one entry", { entries: 1 }],
    ["a ring of too many entries", { entries: MAX_RING_ENTRIES + 1 }],
    ["a completion ring of no entries", { completions: 0 }],
  ])("does so when it is enabled with %s", async (_, { entries = 8, completions = 8 }: Record<string, number>) => {
    const guest = new EngineGuest(createEngine());
    await guest.device.start(guest.context);
    guest.setRegister(REGISTER.RING_ENTRIES, entries);
    guest.setRegister(REGISTER.COMPLETION_ENTRIES, completions);
    guest.setRegister(REGISTER.CONTROL, CONTROL.ENABLE);
    expect(guest.register(REGISTER.STATUS)).toBe(STATUS.HALTED);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.BAD_CONFIGURATION);
    expect(guest.context.vectors).toEqual([VECTOR.ERROR]);
    guest.setRegister(REGISTER.CONTROL, 0);
    guest.enable();
  });

  it("does so at a ring that leaves the bus", async () => {
    const guest = new EngineGuest(createEngine());
    await guest.device.start(guest.context);
    guest.setRegister(REGISTER.RING_BASE, 0xffff_f000);
    guest.setRegister(REGISTER.RING_BASE + 4, 0xffff_ffff);
    guest.setRegister(REGISTER.RING_ENTRIES, 129);
    guest.setRegister(REGISTER.COMPLETION_ENTRIES, 8);
    guest.setRegister(REGISTER.CONTROL, CONTROL.ENABLE);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.BAD_CONFIGURATION);
  });

  it.each([
    ["a tail behind the ring", DOORBELL.RING_TAIL, 64],
    ["a completion head that was not written yet", DOORBELL.COMPLETION_HEAD, 1],
    ["a completion head behind the ring", DOORBELL.COMPLETION_HEAD, 0xffff_ffff],
  ])("does so for %s", async (_, doorbell, value) => {
    const guest = await EngineGuest.start();
    guest.setRegister(doorbell, value, BAR2);
    expect(guest.register(REGISTER.STATUS)).toBe(STATUS.READY | STATUS.HALTED);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.BAD_DOORBELL);
    expect(guest.device.run(1)).toBeGreaterThan(0);
  });

  it("does so where its ring is no memory, or its records have none", async () => {
    const guest = await EngineGuest.start();
    guest.queue(fill(1n, guest.allocate(PAGE_SIZE), 8));
    guest.setRegister(REGISTER.CONTROL, 0);
    guest.setRegister(REGISTER.RING_BASE + 4, 0x100);
    guest.setRegister(REGISTER.CONTROL, CONTROL.ENABLE);
    guest.ringDoorbell();
    finish(guest);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.RING_FAULT);
    guest.setRegister(REGISTER.CONTROL, 0);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.NONE);
    guest.setRegister(REGISTER.RING_BASE + 4, 0);
    guest.setRegister(REGISTER.COMPLETION_BASE + 4, 0x100);
    guest.setRegister(REGISTER.CONTROL, CONTROL.ENABLE);
    guest.ringDoorbell();
    finish(guest);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.COMPLETION_FAULT);
    expect(guest.context.vectors).toEqual([VECTOR.ERROR, VECTOR.ERROR]);
  });
});

describe("an engine that halts inside a descriptor", () => {
  it.each([
    ["its record can't be written", 8],
    ["its record can't be written, after a descriptor that can't be", 0],
  ])("has a state that loads, and gives that descriptor up: %s", async (_, length) => {
    const guest = await EngineGuest.start();
    guest.queue(fill(1n, guest.allocate(PAGE_SIZE), length));
    guest.setRegister(REGISTER.CONTROL, 0);
    guest.setRegister(REGISTER.COMPLETION_BASE + 4, 0x100);
    guest.setRegister(REGISTER.CONTROL, CONTROL.ENABLE);
    guest.ringDoorbell();
    finish(guest);
    expect(guest.register(REGISTER.ERROR)).toBe(HALT.COMPLETION_FAULT);
    expect(guest.register(REGISTER.STATUS)).toBe(STATUS.READY | STATUS.HALTED);
    const target = createEngine();
    await target.start(guest.context);
    target.load(guest.device.save());
    expect(Buffer.compare(target.save(), guest.device.save())).toBe(0);
  });
});

describe("registers that are written in the middle of a DMA", () => {
  /** An engine whose next DMA write calls `during` first. */
  async function interrupted(during: (guest: EngineGuest) => void): Promise<{ guest: EngineGuest; page: number }> {
    const guest = await EngineGuest.start();
    const page = guest.allocate(2 * PAGE_SIZE);
    const { write } = guest.context.dma;
    const port: DmaPort = guest.context.dma;
    port.write = (...args) => {
      port.write = write.bind(port);
      during(guest);
      return port.write(...args);
    };
    guest.queue(fill(0x0101_0101_0101_0101n, page, 2 * PAGE_SIZE));
    guest.ringDoorbell();
    guest.device.run(0);
    guest.device.run(0);
    return { guest, page };
  }

  it("disable it when that DMA has ended, and keep its rings until then", async () => {
    const { guest, page } = await interrupted((inside) => {
      inside.setRegister(REGISTER.CONTROL, 0);
      inside.setRegister(REGISTER.RING_BASE, 0);
      expect(inside.register(REGISTER.STATUS)).toBe(STATUS.READY | STATUS.BUSY);
    });
    expect(guest.register(REGISTER.STATUS)).toBe(0);
    expect(guest.register(REGISTER.RING_BASE)).toBe(guest.ring.base);
    finish(guest);
    expect(guest.at(page + PAGE_SIZE, 1)[0]).toBe(0);
    expect(guest.take()).toEqual([]);
  });

  it("reset it when that DMA has ended", async () => {
    const { guest } = await interrupted((inside) => inside.device.reset());
    expect(guest.register(REGISTER.STATUS)).toBe(0);
    expect(guest.register(REGISTER.RING_ENTRIES)).toBe(0);
    expect(guest.device.counters()).toMatchObject({ chains: 0, bytes: 0 });
  });

  it("reset it with nothing left in its local memory, where what was read goes there", async () => {
    const guest = await EngineGuest.start();
    guest.queue(copy(guest.random(64), 0x2000, 64, FLAG.DESTINATION_LOCAL));
    guest.ringDoorbell();
    const { dma } = guest.context;
    const read = dma.read.bind(dma);
    let reads = 0;
    dma.read = (...args) => {
      // The first is the descriptor's.
      if (++reads === 2) guest.device.reset();
      return read(...args);
    };
    guest.device.run(1);
    expect(reads).toBe(2);
    const local = new Uint8Array(64);
    guest.device.regionRead(BAR2, 0x2000, local);
    expect(local).toEqual(new Uint8Array(64));
  });

  it("queue more work", async () => {
    const { guest, page } = await interrupted((inside) => {
      inside.queue(fill(5n, inside.ring.base - PAGE_SIZE, 8));
      inside.ringDoorbell();
    });
    finish(guest);
    expect(guest.take()).toMatchObject([{ status: 0 }, { status: 0 }]);
    expect(guest.at(page + PAGE_SIZE, 1)[0]).toBe(1);
  });
});

describe("a DMA engine's state", () => {
  it("moves at every step of its work, and each byte is written once", async () => {
    const bytes = 6 * PAGE_SIZE + 77;
    const run = async (moveAt: number) => {
      const guest = await EngineGuest.start({ entries: 5, completions: 3 });
      const source = guest.random(bytes);
      const target = guest.allocate(bytes + PAGE_SIZE) + 9;
      const local = FLAG.DESTINATION_LOCAL;
      guest.queueChain([
        copy(source, 0x2003, bytes, local),
        copy(0x2003, target, bytes, FLAG.SOURCE_LOCAL),
        fill(0n, 0x2003, bytes, local),
      ]);
      guest.ringDoorbell();
      let steps = 0;
      for (; guest.device.run(0) === 0; steps++) if (steps === moveAt) await move(guest);
      if (moveAt >= steps) await move(guest);
      expect(guest.take()).toMatchObject([{ status: 0, descriptors: 3 }]);
      expect(guest.equal(source, target, bytes)).toBe(true);
      expect(guest.device.counters()).toMatchObject({ chains: 1, bytes: 3 * bytes });
      expect(guest.local(0x2003, bytes).every((byte) => byte === 0)).toBe(true);
      return { steps, written: guest.context.dma.written.length };
    };
    const { steps, written } = await run(Number.POSITIVE_INFINITY);
    expect(steps).toBeGreaterThan(20);
    for (let at = 0; at <= steps; at++) expect((await run(at)).written).toBe(written);
  });

  it("loses and repeats no chain, wherever in queued work it moves", async () => {
    // Slots of two pages each; a chain fills one of them, or copies one into another through local memory.
    const SLOTS = 12;
    const SLOT = 2 * PAGE_SIZE;
    const slot = fc.nat(SLOTS - 1);
    const steps = fc.array(
      fc.oneof(
        {
          weight: 4,
          arbitrary: fc.record({
            kind: fc.constant("fill" as const),
            to: slot,
            value: fc.integer({ min: 1, max: 255 }),
          }),
        },
        { weight: 4, arbitrary: fc.record({ kind: fc.constant("copy" as const), from: slot, to: slot }) },
        { weight: 1, arbitrary: fc.record({ kind: fc.constant("bad" as const), to: slot }) },
        { weight: 4, arbitrary: fc.record({ kind: fc.constant("ring" as const) }) },
        {
          weight: 8,
          arbitrary: fc.record({ kind: fc.constant("run" as const), slices: fc.integer({ min: 1, max: 5 }) }),
        },
        {
          weight: 3,
          arbitrary: fc.record({ kind: fc.constant("take" as const), most: fc.integer({ min: 1, max: 4 }) }),
        },
        { weight: 4, arbitrary: fc.record({ kind: fc.constant("move" as const) }) },
      ),
      { minLength: 20, maxLength: 120 },
    );
    await fc.assert(
      fc.asyncProperty(steps, async (all) => {
        // Short rings: their ends and passes come round.
        const guest = await EngineGuest.start({ entries: 7, completions: 4 });
        const base = guest.allocate(SLOTS * SLOT);
        const expected = new Uint8Array(SLOTS);
        const open = new Set<number>();
        let queued = 0;
        let failed = 0;
        const take = (most: number) => {
          for (const { tag, status, descriptors } of guest.take(most)) {
            if (!open.delete(tag)) throw new Error(`chain ${tag} was completed twice, or never queued`);
            expect([status, descriptors]).toEqual(tag >= 1_000_000 ? [CHAIN_STATUS.BAD_LENGTH, 1] : [0, 2]);
          }
        };
        const queue = (chain: DescriptorFields[]) => {
          open.add(guest.queueChain(chain));
          queued++;
        };
        for (const step of all) {
          if (step.kind === "fill" || step.kind === "copy" || step.kind === "bad") {
            if (!guest.hasRoom(2)) continue;
            const to = base + step.to * SLOT;
            if (step.kind === "fill") {
              const pattern = BigInt(`0x${step.value.toString(16).padStart(2, "0").repeat(8)}`);
              queue([fill(0n, to, SLOT), fill(pattern, to, SLOT)]);
              expected[step.to] = step.value;
            } else if (step.kind === "copy") {
              const from = base + step.from * SLOT;
              const through = 0x3000;
              queue([copy(from, through, SLOT, FLAG.DESTINATION_LOCAL), copy(through, to, SLOT, FLAG.SOURCE_LOCAL)]);
              expected[step.to] = expected[step.from];
            } else {
              const pattern = BigInt(`0x${expected[step.to].toString(16).padStart(2, "0").repeat(8)}`);
              queue([fill(pattern, to, 64), { ...fill(1n, to, 0), tag: 1_000_000 + failed++ }]);
            }
          } else if (step.kind === "ring") guest.ringDoorbell();
          else if (step.kind === "run") for (let i = 0; i < step.slices; i++) guest.device.run(0);
          else if (step.kind === "take") take(step.most);
          else await move(guest);
        }
        guest.ringDoorbell();
        for (let round = 0; round < 50 && open.size > 0; round++) {
          while (guest.device.run(0) === 0);
          take(100);
        }
        expect(open.size).toBe(0);
        expect(guest.device.counters()).toMatchObject({ chains: queued, failedChains: failed });
        for (let i = 0; i < SLOTS; i++) {
          expect(guest.at(base + i * SLOT, SLOT).every((byte) => byte === expected[i])).toBe(true);
        }
      }),
      { numRuns: 150, seed: SEED },
    );
  });

  it("interrupts again for records that the guest has not taken: the interrupt may have been lost", async () => {
    const guest = await EngineGuest.start();
    guest.queue(fill(1n, guest.allocate(PAGE_SIZE), 8));
    guest.ringDoorbell();
    finish(guest);
    expect(guest.context.vectors).toEqual([]);
    await move(guest);
    finish(guest);
    expect(guest.context.vectors).toEqual([VECTOR.COMPLETION]);
  });

  it("is refused where it is cut off or changed, and leaves an engine that works after a reset", async () => {
    const guest = await EngineGuest.start();
    const page = guest.allocate(8 * PAGE_SIZE);
    guest.setLocal(0x5000, Uint8Array.of(1));
    guest.queue(fill(1n, page, 8 * PAGE_SIZE));
    guest.ringDoorbell();
    for (let i = 0; i < 4; i++) guest.device.run(0);
    const state = guest.device.save();
    const device = createEngine();
    await device.start(guest.context);
    fc.assert(
      fc.property(fc.nat(state.byteLength - 1), (length) => {
        expect(() => device.load(state.slice(0, length))).toThrow(/device state/);
      }),
      { numRuns: 50, seed: SEED },
    );
    let refused = 0;
    fc.assert(
      fc.property(fc.nat(state.byteLength - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const changed = state.slice();
        changed[at] ^= change;
        // Not every byte can be told from another that would be right; a refusal has to be the one that is documented.
        try {
          device.load(changed);
          while (device.run(1) === 0);
        } catch (error) {
          refused++;
          expect(error).toMatchObject({ code: "BAD_DEVICE_STATE" });
        }
      }),
      { numRuns: 500, seed: SEED },
    );
    expect(refused).toBeGreaterThan(50);
    guest.device = device;
    device.load(state);
    while (device.run(1) === 0);
    expect(guest.take()).toMatchObject([{ status: 0, bytes: 8 * PAGE_SIZE }]);
  });
});
