import { closeSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { LOCAL_BYTES as BAR2_BYTES } from "../../devices/dma-engine/dma-engine.js";
import { EngineGuest } from "../../devices/dma-engine/driver.test.helper.js";
import { CHAIN_STATUS, DOORBELL, FLAG, OPCODE, REGISTER, STATUS } from "../../devices/dma-engine/spec.js";
import { type DrivenDevice, MEMORY_BYTES } from "../../devices/guest.test.helper.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { createMemfd } from "../../sys/memfd.js";
import { mapFileOver } from "../../sys/mmap.js";
import { vfio_region_info } from "../../uapi/vfio.js";
import {
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  vfio_region_info_cap_sparse_mmap,
  vfio_region_sparse_mmap_area,
} from "../../uapi/vfio-user.js";
import { VfioUserDevice } from "../client/device.js";
import { moveServed, ServedDriven } from "./driven.test.helper.js";
import { mapDma, socketDirectory, unmapDma } from "./served.test.helper.js";

/*
 * The DMA engine behind a real socket, as a VMM sees it: its mappable memory, its log, and its state in the middle of a
 * descriptor.
 */

const BAR2 = 2;
const SEED = 514229;
/** A server for each move, on a computer that may be busy. */
const LONG = { timeout: 120_000 };
const LOCAL = BAR2_BYTES.default;

const open: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of open.splice(0).reverse()) await close();
});

/** A guest whose memory is a file, and servers of engines that it drives one after the other. */
class Rig {
  readonly guest: EngineGuest<DrivenDevice>;
  readonly #directory = socketDirectory();
  readonly #fd = createMemfd("guest", MEMORY_BYTES);
  #servers = 0;
  served: ServedDriven | undefined;

  private constructor() {
    this.guest = new EngineGuest<DrivenDevice>({
      regionRead: (...args) => this.engine.regionRead(...args),
      regionWrite: (...args) => this.engine.regionWrite(...args),
      run: () => this.engine.run(),
    });
    mapFileOver(this.guest.memory.arenas[0].u8.subarray(0, MEMORY_BYTES), this.#fd);
  }

  static async start(): Promise<Rig> {
    const rig = new Rig();
    open.push(() => rig.close());
    rig.served = await rig.serve();
    rig.guest.enable();
    return rig;
  }

  get engine(): ServedDriven {
    if (this.served === undefined) throw new Error("no engine is served");
    return this.served;
  }

  serve(): Promise<ServedDriven> {
    const path = join(this.#directory.path, String(this.#servers++));
    return ServedDriven.start({ model: "dma-engine", path }, { fd: this.#fd, regions: this.guest.memory.regions });
  }

  async close(): Promise<void> {
    await this.served?.[Symbol.asyncDispose]();
    closeSync(this.#fd);
    this.#directory[Symbol.dispose]();
  }
}

describe.runIf(process.platform === "linux")("a served DMA engine", () => {
  it("has memory that a client maps behind doorbells that it does not", async () => {
    const { engine, guest } = await Rig.start();
    const { payload, fds } = engine.client.call("DEVICE_GET_REGION_INFO", vfio_region_info, {
      argsz: 1024,
      index: BAR2,
    });
    const info = vfio_region_info.decode(payload);
    expect(info).toMatchObject({ size: BigInt(LOCAL), cap_offset: vfio_region_info.size });
    const flags = VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;
    expect(info.flags & flags).toBe(flags);
    const capability = vfio_region_info_cap_sparse_mmap.decode(payload, info.cap_offset);
    expect(capability).toMatchObject({ header: { id: VFIO_REGION_INFO_CAP_SPARSE_MMAP, next: 0 }, nr_areas: 1 });
    const at = info.cap_offset + vfio_region_info_cap_sparse_mmap.size;
    const area = vfio_region_sparse_mmap_area.decode(payload, at);
    expect(area).toEqual({ offset: BigInt(PAGE_SIZE), size: BigInt(LOCAL - PAGE_SIZE) });
    expect(fds).toHaveLength(1);
    open.push(() => closeSync(fds[0]));

    const mapped = createArena(Number(area.size)).u8.subarray(0, Number(area.size));
    mapFileOver(mapped, fds[0], Number(info.offset + area.offset));
    const source = guest.random(2 * PAGE_SIZE);
    const target = guest.allocate(2 * PAGE_SIZE);
    guest.execute({ source, destination: 3 * PAGE_SIZE, length: 2 * PAGE_SIZE, flags: FLAG.DESTINATION_LOCAL });
    expect(Buffer.compare(mapped.subarray(2 * PAGE_SIZE, 4 * PAGE_SIZE), guest.at(source, 2 * PAGE_SIZE))).toBe(0);
    mapped.set([1, 2, 3], 2 * PAGE_SIZE);
    guest.execute({ source: 3 * PAGE_SIZE, destination: target, length: 2 * PAGE_SIZE, flags: FLAG.SOURCE_LOCAL });
    expect([...guest.at(target, 4)]).toEqual([1, 2, 3, guest.at(source, 4)[3]]);
    expect(guest.register(DOORBELL.RING_TAIL, BAR2)).toBe(guest.ring.tail);
  });

  it("writes to another served device's memory that its client maps for it: peer to peer, and stops with the rest", async () => {
    const { engine, guest } = await Rig.start();
    const peer = await Rig.start();
    const { fds } = peer.engine.client.call("DEVICE_GET_REGION_INFO", vfio_region_info, { argsz: 1024, index: BAR2 });
    open.push(() => closeSync(fds[0]));
    const bar = { address: 0xe000_0000n, size: BigInt(LOCAL - PAGE_SIZE), offset: BigInt(PAGE_SIZE) };
    mapDma(engine.client, bar, fds);
    const source = guest.random(3 * PAGE_SIZE);
    const copy = { source, destination: bar.address + 100n, length: 3 * PAGE_SIZE };
    expect(guest.execute(copy)).toMatchObject({ status: 0, bytes: 3 * PAGE_SIZE });
    expect(Buffer.compare(peer.guest.local(PAGE_SIZE + 100, 3 * PAGE_SIZE), guest.at(source, 3 * PAGE_SIZE))).toBe(0);

    for (const state of ["PRE_COPY", "PRE_COPY_P2P"] as const) engine.setState(state);
    guest.queue({ opcode: OPCODE.FILL, destination: bar.address, length: 8 });
    guest.ringDoorbell();
    engine.run();
    expect(guest.take()).toEqual([]);
    unmapDma(engine.client, bar.address, bar.size);
    for (const state of ["PRE_COPY", "RUNNING"] as const) engine.setState(state);
    for (let tries = 0; tries < 5000 && guest.register(REGISTER.COMPLETION_TAIL) !== 2; tries++) engine.run();
    expect(guest.take()).toMatchObject([{ status: CHAIN_STATUS.DESTINATION_FAULT, bytes: 0 }]);
  });

  it("names each page that it writes, and none that it does not, in granules of the client's choice", async () => {
    const rig = await Rig.start();
    const { guest, engine } = rig;
    await using control = await VfioUserDevice.open({ path: engine.server.controlPath, id: "log", control: true });
    const AREA = 4 * 2 ** 20;
    const MAX_GRANULE = 65536;
    const area = Math.ceil(guest.allocate(AREA + MAX_GRANULE) / MAX_GRANULE) * MAX_GRANULE;
    // Records go where they are not asked about.
    expect(guest.completions.base).toBeLessThan(area);
    const write = fc.record({
      at: fc.nat(AREA - 2 * PAGE_SIZE),
      length: fc.integer({ min: 1, max: 2 * PAGE_SIZE }),
      granule: fc.constantFrom(4096, 8192, MAX_GRANULE),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(write, { minLength: 1, maxLength: 20 }), async (writes) => {
        const [{ granule }] = writes;
        const range = { iova: BigInt(area), length: BigInt(AREA) };
        expect(await control.startDmaLogging({ pageSize: granule, ranges: [range] })).toBe(granule);
        const before = Buffer.from(guest.at(area, AREA));
        const named = new Set<number>();
        for (const [i, { at, length }] of writes.entries()) {
          // Never what was there: each byte that is written changes.
          const pattern = BigInt.asUintN(64, ~guest.view(area + at, 8).getBigUint64(0, true));
          guest.execute({ opcode: OPCODE.FILL, source: pattern, destination: area + at, length });
          for (let page = at - (at % granule); page < at + length; page += granule) named.add(page / granule);
          if (i % 7 !== 6 && i < writes.length - 1) continue;
          const into = new DirtyBitmap({ ...range, granule });
          await control.reportDmaLogging({ ...range, pageSize: granule, into });
          const found = Array.from({ length: into.bits }, (_, bit) => bit).filter((bit) => into.get(bit));
          expect(found).toEqual([...named].sort((a, b) => a - b));
          const after = guest.at(area, AREA);
          for (let page = 0; page < AREA / granule; page++) {
            const [from, to] = [page * granule, (page + 1) * granule];
            if (!named.has(page)) expect(Buffer.compare(before.subarray(from, to), after.subarray(from, to))).toBe(0);
          }
          before.set(after);
          named.clear();
        }
        await control.stopDmaLogging();
      }),
      { numRuns: 15, seed: SEED },
    );
  });

  it("moves in the middle of a descriptor, and writes the rest", LONG, async () => {
    const rig = await Rig.start();
    const { guest } = rig;
    const BYTES = 8 * 2 ** 20;
    const target = guest.allocate(BYTES);
    let inside = 0;
    for (let round = 1; round <= 8 && inside < 3; round++) {
      const pattern = BigInt(`0x${round.toString(16).padStart(2, "0").repeat(8)}`);
      const fill = { opcode: OPCODE.FILL, destination: target, length: BYTES };
      const source = rig.engine;
      const next = await rig.serve();
      const tag = guest.queueChain([
        { ...fill, source: 0 },
        { ...fill, source: pattern, flags: FLAG.INTERRUPT },
      ]);
      guest.ringDoorbell();
      moveServed(source, next, () => {
        if ((guest.register(REGISTER.STATUS) & STATUS.BUSY) !== 0) inside++;
      });
      rig.served = next;
      await source[Symbol.asyncDispose]();
      const records = [];
      for (let tries = 0; tries < 5000 && records.length === 0; tries++) {
        next.run();
        records.push(...guest.take());
      }
      expect(records).toMatchObject([{ tag, status: 0, bytes: BYTES, descriptors: 2 }]);
      expect(guest.at(target, BYTES).every((byte) => byte === round)).toBe(true);
      expect(next.counters()).toMatchObject({ chains: round, bytes: 2 * round * BYTES });
    }
    expect(inside).toBeGreaterThan(0);
  });
});
