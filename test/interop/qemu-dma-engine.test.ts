import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import {
  CONTROL,
  completion,
  DOORBELL,
  DOORBELL_BYTES,
  descriptor,
  FLAG,
  ID,
  OPCODE,
  REGISTER,
  STATUS,
} from "../../src/devices/dma-engine/spec.js";
import { VfioUserDevice } from "../../src/vfio-user/client/device.js";
import { type DeviceServer, serveDevice } from "../../src/vfio-user/server/server.js";
import { foundOrMissing, MissingError } from "../../tools/vm/missing.js";
import { findQemu } from "../../tools/vm/qemu.js";
import { requireFound } from "../support/required.js";
import { QtestMachine } from "./qtest.js";

/*
 * The DMA engine served to QEMU, whose machine is driven register by register: BARs, the memory of BAR 2 that QEMU maps, rings
 * in its RAM, and the log over a control connection.
 */

const PAGE = 4096;
const MEMORY_BYTES = 64 * 2 ** 20;
const LOCAL_BYTES = 64 * 1024;
const LIMIT_MS = 120_000;

const SLOT = 4;
const BAR0 = 0xe000_0000;
const BAR2 = 0xe100_0000;

/** Where things lie in the guest's memory. */
const RING = 0x10_0000;
const RECORDS = 0x10_1000;
const SOURCE = 0x20_0000;
const TARGET = 0x30_0000;
const ENTRIES = 16;

const found = foundOrMissing(() => findQemu({ needs: [{ device: "vfio-user-pci" }] }));
requireFound("QEMU 10.1 or later as a client of vfio-user", found);

describe.skipIf(found instanceof MissingError)("a DMA engine in QEMU's machine", () => {
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-dma-engine-"));
  let server: DeviceServer;
  let machine: QtestMachine;
  let tail = 0;
  let head = 0;

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    const path = join(folder, "engine");
    server = await serveDevice({ model: "dma-engine", path, options: { memory: LOCAL_BYTES } });
    const memory = `memory-backend-memfd,id=mem,size=${MEMORY_BYTES},share=on`;
    const device = { driver: "vfio-user-pci", addr: `${SLOT}.0`, socket: { type: "unix", path } };
    const options = ["-m", String(MEMORY_BYTES / 2 ** 20), "-machine", "q35,memory-backend=mem", "-object", memory];
    machine = new QtestMachine(found, [...options, "-device", JSON.stringify(device)]);
    for (const [register, address] of [
      [0x10, BAR0],
      [0x14, 0],
      [0x18, BAR2],
      [0x1c, 0],
      [0x04, 0x6],
    ]) {
      await machine.configWrite(SLOT, register, address);
    }
    for (const [register, value] of [
      [REGISTER.RING_BASE, RING],
      [REGISTER.RING_ENTRIES, ENTRIES],
      [REGISTER.COMPLETION_BASE, RECORDS],
      [REGISTER.COMPLETION_ENTRIES, ENTRIES],
      [REGISTER.CONTROL, CONTROL.ENABLE],
    ]) {
      await machine.writel(BAR0 + register, value);
    }
  }, LIMIT_MS);

  afterAll(async () => {
    await machine?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  }, LIMIT_MS);

  /** Has a chain done, and returns its record. */
  async function execute(...chain: Parameters<typeof descriptor.encode>[0][]) {
    for (const [i, fields] of chain.entries()) {
      const flags = (fields.flags ?? 0) | (i < chain.length - 1 ? FLAG.CHAIN : 0);
      await machine.write(RING + tail * descriptor.size, descriptor.encode({ ...fields, flags }));
      tail = (tail + 1) % ENTRIES;
    }
    await machine.writel(BAR2 + DOORBELL.RING_TAIL, tail);
    for (const until = performance.now() + 10_000; performance.now() < until; ) {
      if ((await machine.readl(BAR0 + REGISTER.COMPLETION_TAIL)) === head) continue;
      const record = completion.decode(await machine.read(RECORDS + head * completion.size, completion.size));
      head = (head + 1) % ENTRIES;
      await machine.writel(BAR2 + DOORBELL.COMPLETION_HEAD, head);
      return record;
    }
    throw new Error("the chain was not completed");
  }

  it("is found, with its BARs and registers", async () => {
    expect(await machine.configRead(SLOT, 0)).toBe(0x444d_1234);
    expect(await machine.readl(BAR0 + REGISTER.ID)).toBe(ID);
    expect(await machine.readl(BAR0 + REGISTER.LOCAL_BYTES)).toBe(LOCAL_BYTES);
    expect(await machine.readl(BAR0 + REGISTER.STATUS)).toBe(STATUS.READY);
  });

  it("copies through its own memory, which QEMU maps: what it writes there is seen without asking it", async () => {
    const data = Buffer.from(Array.from({ length: 3 * PAGE }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
    await machine.write(SOURCE + 100, data);
    const local = DOORBELL_BYTES + 0x123;
    const there = { opcode: OPCODE.COPY, length: data.length, tag: 1, flags: FLAG.DESTINATION_LOCAL };
    expect(await execute({ ...there, source: BigInt(SOURCE + 100), destination: BigInt(local) })).toMatchObject({
      status: 0,
      tag: 1,
      bytes: data.length,
    });
    expect((await machine.read(BAR2 + local, data.length)).equals(data)).toBe(true);
    const [first, second] = [await messagesAnswered(), await messagesAnswered()];
    await machine.writel(BAR2 + DOORBELL_BYTES + 0x124, 0xdead_beef);
    expect(await machine.readl(BAR2 + DOORBELL_BYTES + 0x124)).toBe(0xdead_beef);
    expect((await messagesAnswered()) - second).toBe(second - first);
    const back = { opcode: OPCODE.COPY, length: data.length, tag: 2, flags: FLAG.SOURCE_LOCAL };
    expect(await execute({ ...back, source: BigInt(local), destination: BigInt(TARGET) })).toMatchObject({ status: 0 });
    data.writeUInt32LE(0xdead_beef, 1);
    expect((await machine.read(TARGET, data.length)).equals(data)).toBe(true);
  });

  it("names in its log each page of QEMU's memory that it writes, and no other", async () => {
    await using control = await VfioUserDevice.open({ path: server.controlPath, id: "control", control: true });
    const range = { iova: 0n, length: BigInt(MEMORY_BYTES) };
    await control.startDmaLogging({ pageSize: PAGE, ranges: [range] });
    const fill = { opcode: OPCODE.FILL, source: 0x55n };
    expect(
      await execute(
        { ...fill, destination: BigInt(TARGET + PAGE - 1), length: 2 * PAGE },
        { ...fill, destination: BigInt(SOURCE + 5 * PAGE), length: 8, tag: 9 },
      ),
    ).toMatchObject({ status: 0, tag: 9, descriptors: 2 });
    const into = new DirtyBitmap({ ...range, granule: PAGE });
    await control.reportDmaLogging({ ...range, pageSize: PAGE, into });
    await control.stopDmaLogging();
    const named = Array.from({ length: into.bits }, (_, page) => page * PAGE).filter((at) => into.get(at / PAGE));
    expect(named).toEqual([RECORDS, SOURCE + 5 * PAGE, TARGET, TARGET + PAGE, TARGET + 2 * PAGE]);
  });

  /** Messages that the server has answered, with as many in it for asking each time. */
  async function messagesAnswered(): Promise<number> {
    await using control = await VfioUserDevice.open({ path: server.controlPath, id: "control", control: true });
    const counters = (await control.serverCounters()) as { readonly messages?: { readonly answered: number } } | null;
    if (counters?.messages === undefined) throw new Error("the server does not tell");
    return counters.messages.answered;
  }
});
