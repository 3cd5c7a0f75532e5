import { closeSync } from "node:fs";
import fc from "fast-check";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_GET as GET,
  VFIO_DEVICE_FEATURE_PROBE as PROBE,
  VFIO_DEVICE_FEATURE_SET as SET,
  VFIO_DEVICE_STATE as STATE,
  vfio_device_feature,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
  vfio_precopy_info,
} from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP,
  vfio_user_bitmap,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
  vfio_user_dma_unmap,
  vfio_user_mig_data,
} from "../../uapi/vfio-user.js";
import type { RawClient } from "../raw-client.test.helper.js";
import { dma, done, errnoOf, feature, mapDma, Served, sharedMemory, unmapDma } from "./served.test.helper.js";
import { TEST_REGISTER } from "./test-model.test.helper.js";

const PAGE = 4096;
const P = 4096n;

export interface Range {
  readonly iova: bigint;
  readonly length: bigint;
}

function start(client: RawClient, ranges: readonly Range[], pageSize = P): bigint {
  const { size: each } = vfio_device_feature_dma_logging_range;
  const { size: head } = vfio_user_dma_logging_control;
  const data = new Uint8Array(head + ranges.length * each);
  vfio_user_dma_logging_control.encode({ page_size: pageSize, num_ranges: ranges.length }, data);
  for (const [i, range] of ranges.entries()) vfio_device_feature_dma_logging_range.encode(range, data, head + i * each);
  return vfio_user_dma_logging_control.decode(feature(client, SET | FEATURE.DMA_LOGGING_START, data)).page_size;
}

function report(client: RawClient, iova: bigint, length: bigint, page_size = P): Uint8Array {
  const bytes = Math.ceil(Number((length + page_size - 1n) / page_size) / 64) * 8;
  const { size: head } = vfio_user_dma_logging_report;
  const data = vfio_user_dma_logging_report.encode({ iova, length, page_size });
  const reply = feature(client, GET | FEATURE.DMA_LOGGING_REPORT, data, head + bytes);
  expect(reply.byteLength).toBe(head + bytes);
  expect(vfio_user_dma_logging_report.decode(reply)).toEqual({ iova, length, page_size });
  return reply.subarray(head);
}

/** Numbers of the bits that are set. */
function bits(bitmap: Uint8Array): number[] {
  return Array.from({ length: bitmap.byteLength * 8 }, (_, i) => i).filter(
    (i) => ((bitmap[i >> 3] >> (i & 7)) & 1) === 1,
  );
}

function stop(client: RawClient): void {
  feature(client, SET | FEATURE.DMA_LOGGING_STOP);
}

function setState(client: RawClient, state: keyof typeof STATE): void {
  const data = vfio_device_feature_mig_state.encode({ device_state: STATE[state], data_fd: -1 });
  expect(feature(client, SET | FEATURE.MIG_DEVICE_STATE, data)).toEqual(data);
}

function state(client: RawClient): number {
  const reply = feature(client, GET | FEATURE.MIG_DEVICE_STATE, undefined, 8);
  expect(vfio_device_feature_mig_state.decode(reply).data_fd).toBe(-1);
  return vfio_device_feature_mig_state.decode(reply).device_state;
}

function readData(client: RawClient, size: number): Uint8Array {
  const { payload } = client.call("MIG_DATA_READ", vfio_user_mig_data, { argsz: 8 + size, size });
  const reply = vfio_user_mig_data.decode(payload);
  // It is as long as what was asked for, whatever came.
  expect(payload.byteLength).toBe(8 + size);
  expect(reply.argsz).toBe(8 + reply.size);
  expect(payload.subarray(reply.argsz).every((byte) => byte === 0)).toBe(true);
  return payload.subarray(8, reply.argsz);
}

function writeData(client: RawClient, data: Uint8Array): void {
  const size = data.byteLength;
  expect(client.call("MIG_DATA_WRITE", vfio_user_mig_data, { argsz: 8 + size, size }, { data }).payload).toHaveLength(
    0,
  );
}

describe.runIf(process.platform === "linux")("features of a served device", () => {
  let shared: Served | undefined;
  beforeEach(async () => {
    shared ??= await Served.start();
    shared.reconnect().request("DEVICE_RESET", null);
  });
  afterAll(async () => {
    await shared?.[Symbol.asyncDispose]();
  });
  const served = () => {
    if (shared === undefined) throw new Error("no server");
    return shared;
  };

  it("are probed for, with the operations that they have", () => {
    const { client } = served();
    const probe = (number: number, operations: number) => errnoOf(() => feature(client, PROBE | operations | number));
    for (const number of Object.values(FEATURE)) expect(probe(number, 0)).toBe("none");
    expect(probe(FEATURE.MIG_DEVICE_STATE, GET | SET)).toBe("none");
    expect(probe(FEATURE.MIGRATION, GET)).toBe("none");
    expect(probe(FEATURE.MIGRATION, SET)).toBe("EINVAL");
    expect(probe(FEATURE.DMA_LOGGING_REPORT, GET | SET)).toBe("EINVAL");
    for (const number of [0, 3, 4, 5, 10, 0xffff]) expect([number, probe(number, 0)]).toEqual([number, "ENOTTY"]);
  });

  it("are refused as the kernel does where flags or room are wrong", () => {
    const { client } = served();
    const use = (flags: number, room = 64) => errnoOf(() => feature(client, flags, undefined, room));
    expect(use(FEATURE.MIGRATION)).toBe("EINVAL");
    expect(use(FEATURE.MIG_DEVICE_STATE | GET | SET)).toBe("EINVAL");
    expect(use(FEATURE.MIGRATION | GET | (1 << 19))).toBe("EINVAL");
    expect(use(FEATURE.MIGRATION | GET, 7)).toBe("EINVAL");
    expect(use(FEATURE.MIG_DEVICE_STATE | SET)).toBe("EINVAL");
    expect(use(FEATURE.DMA_LOGGING_START | SET)).toBe("EINVAL");
    expect(errnoOf(() => client.request("DEVICE_FEATURE", new Uint8Array(7)))).toBe("EINVAL");
    expect(
      errnoOf(() => client.call("DEVICE_FEATURE", vfio_device_feature, { argsz: 7, flags: PROBE | FEATURE.MIGRATION })),
    ).toBe("EINVAL");
  });

  it("answer what the device supports, and in which state it is", () => {
    const { client } = served();
    const reply = feature(client, GET | FEATURE.MIGRATION, undefined, 8);
    expect(vfio_device_feature_migration.decode(reply)).toEqual({ flags: 0b111n });
    expect(state(client)).toBe(STATE.RUNNING);
    for (const next of ["RUNNING_P2P", "STOP", "STOP_COPY", "STOP", "RUNNING", "PRE_COPY", "RUNNING"] as const) {
      setState(client, next);
      expect(state(client)).toBe(STATE[next]);
    }
    const set = (device_state: number) =>
      errnoOf(() =>
        feature(client, SET | FEATURE.MIG_DEVICE_STATE, vfio_device_feature_mig_state.encode({ device_state })),
      );
    expect(set(STATE.ERROR)).toBe("EINVAL");
    expect(set(99)).toBe("EINVAL");
    setState(client, "STOP_COPY");
    expect(set(STATE.PRE_COPY)).toBe("EINVAL");
  });

  it("stop the device's DMA where its state says so", () => {
    const { client } = served();
    const { fd, u8 } = sharedMemory(PAGE);
    mapDma(client, { address: 0n, size: P }, [fd]);
    closeSync(fd);
    setState(client, "STOP");
    client.regionWrite(0, TEST_REGISTER.ADDRESS, new Uint8Array(Uint32Array.of(0, 0, 7, 4).buffer));
    client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(0);
    expect(u8[0]).toBe(0);
    setState(client, "RUNNING");
    expect(done(client)).toBe("done");
    expect(u8[0]).toBe(7);
  });

  describe("DMA logging", () => {
    it("reports each page that was written, once, and nothing outside the logged ranges", () => {
      const { client } = served();
      const { fd } = sharedMemory(64 * PAGE);
      mapDma(client, { address: 0x100000n, size: 64n * P }, [fd]);
      closeSync(fd);
      expect(
        start(client, [
          { iova: 0x100000n, length: 16n * P },
          { iova: 0x120000n, length: 8n * P },
        ]),
      ).toBe(P);
      for (const page of [0, 3, 15, 16, 31, 33, 40]) dma(client, "WRITE", { address: 0x100000n + BigInt(page) * P });
      dma(client, "READ", { address: 0x101000n });
      expect(bits(report(client, 0x100000n, 64n * P))).toEqual([0, 3, 15, 33]);
      expect(bits(report(client, 0x100000n, 64n * P))).toEqual([]);
      dma(client, "WRITE_PAGES", { address: 0x104000n, value: 3 });
      // Any range, also one that begins before what is logged, and at any granule.
      expect(bits(report(client, 0x105000n, P))).toEqual([0]);
      expect(bits(report(client, 0xfe000n, 16n * P))).toEqual([6, 8]);
      dma(client, "WRITE_PAGES", { address: 0x104000n, value: 3 });
      expect(bits(report(client, 0x100000n, 32n * P, 4n * P))).toEqual([1]);
      expect(report(client, 0x100000n, 0n)).toHaveLength(0);
      stop(client);
      stop(client);
      expect(errnoOf(() => report(client, 0x100000n, P))).toBe("EINVAL");
    });

    it("takes the granule that is asked for", () => {
      const { client } = served();
      const { fd } = sharedMemory(64 * PAGE);
      mapDma(client, { address: 0n, size: 64n * P }, [fd]);
      closeSync(fd);
      for (const granule of [P, 4n * P, 2n ** 30n]) {
        expect(start(client, [{ iova: 0n, length: 2n ** 30n }], granule)).toBe(granule);
        dma(client, "WRITE", { address: 9n * P });
        const expected = Array.from(
          { length: Number(granule / P) },
          (_, i) => Number((9n * P) / granule) * Number(granule / P) + i,
        );
        expect(bits(report(client, 0n, 64n * P))).toEqual(expected.filter((page) => page < 64));
        stop(client);
      }
      expect(start(client, [{ iova: 0n, length: 2n ** 32n }], 2n ** 31n)).toBe(2n ** 30n);
    });

    it("refuses what the kernel refuses, with its errno", () => {
      const { client } = served();
      const at = (iova: bigint, length = P): Range => ({ iova, length });
      const many = (count: number) => Array.from({ length: count }, (_, i) => at(BigInt(i) * 2n * P));
      expect(errnoOf(() => start(client, many(257)))).toBe("E2BIG");
      expect(errnoOf(() => start(client, many(17)))).toBe("E2BIG");
      expect(errnoOf(() => start(client, [at(0n, 2n * P), at(P)]))).toBe("EINVAL");
      expect(errnoOf(() => start(client, [at(1n)]))).toBe("EINVAL");
      expect(errnoOf(() => start(client, [at(0n, 0n)]))).toBe("EINVAL");
      expect(errnoOf(() => start(client, [at(0n)], 3n * P))).toBe("EINVAL");
      expect(errnoOf(() => start(client, [at(0n)], 2n ** 63n))).toBe("EINVAL");
      expect(errnoOf(() => start(client, [at(2n ** 64n - P, 2n * P)]))).toBe("EOVERFLOW");
      expect(errnoOf(() => start(client, [at(0n, 2n ** 50n)]))).toBe("ENOMEM");
      expect(errnoOf(() => report(client, 0n, P))).toBe("EINVAL");
      start(client, many(16));
      expect(errnoOf(() => start(client, [at(0n)]))).toBe("EINVAL");
      expect(errnoOf(() => report(client, 0n, P, 2048n))).toBe("EINVAL");
      expect(errnoOf(() => report(client, 0n, P, 12288n))).toBe("EINVAL");
      const wrap = vfio_user_dma_logging_report.encode({ iova: 2n ** 64n - P, length: 2n * P, page_size: P });
      expect(errnoOf(() => feature(client, GET | FEATURE.DMA_LOGGING_REPORT, wrap, 64))).toBe("EOVERFLOW");
      const long = vfio_user_dma_logging_report.encode({ iova: 0n, length: 2n ** 62n, page_size: P });
      expect(errnoOf(() => feature(client, GET | FEATURE.DMA_LOGGING_REPORT, long, 0xfffffff0))).toBe("EINVAL");
      const tight = vfio_user_dma_logging_report.encode({ iova: 0n, length: 65n * P, page_size: P });
      expect(errnoOf(() => feature(client, GET | FEATURE.DMA_LOGGING_REPORT, tight, 24 + 15))).toBe("EINVAL");
    });

    it("of 0 ranges logs everything that is mapped, and what will be", () => {
      const { client } = served();
      const { fd } = sharedMemory(8 * PAGE);
      start(client, []);
      mapDma(client, { address: 0x10000n, size: 4n * P }, [fd]);
      dma(client, "WRITE", { address: 0x11000n });
      mapDma(client, { address: 0xffff_0000_0000n, size: 4n * P, offset: 4n * P }, [fd]);
      closeSync(fd);
      dma(client, "WRITE", { address: 0xffff_0000_3000n });
      expect(bits(report(client, 0x10000n, 4n * P))).toEqual([1]);
      expect(bits(report(client, 0xffff_0000_0000n, 4n * P))).toEqual([3]);
      expect(errnoOf(() => start(client, []))).toBe("EINVAL");
    });

    it("gives the last bits of a region with its unmapping", () => {
      const { client } = served();
      const { fd } = sharedMemory(8 * PAGE);
      mapDma(client, { address: 0x10000n, size: 8n * P }, [fd]);
      closeSync(fd);
      const unmap = (bytes: bigint, argsz = 40 + Number(bytes), address = 0x10000n) => {
        const data = vfio_user_bitmap.encode({ pgsize: P, size: bytes });
        const values = { argsz, flags: VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP, address, size: 8n * P };
        return client.call("DMA_UNMAP", vfio_user_dma_unmap, values, { data }).payload;
      };
      expect(errnoOf(() => unmap(8n))).toBe("EINVAL");
      start(client, [{ iova: 0x10000n, length: 8n * P }]);
      dma(client, "WRITE", { address: 0x15000n });
      expect(errnoOf(() => unmap(0n))).toBe("EINVAL");
      expect(errnoOf(() => unmap(8n, 47))).toBe("EINVAL");
      expect(errnoOf(() => unmap(2n ** 40n, 0xffffffff))).toBe("EINVAL");
      expect(errnoOf(() => unmap(8n, 48, 0x90000n))).toBe("ENOENT");
      const reply = unmap(16n);
      expect(reply).toHaveLength(40 + 16);
      expect(bits(reply.subarray(40))).toEqual([5]);
      expect(errnoOf(() => unmapDma(client, 0x10000n, 8n * P))).toBe("ENOENT");
    });

    it("ends with the client that started it, and with a reset", () => {
      const { client } = served();
      start(client, [{ iova: 0n, length: P }]);
      const next = served().reconnect();
      expect(errnoOf(() => report(next, 0n, P))).toBe("EINVAL");
      start(next, [{ iova: 0n, length: P }]);
      next.request("DEVICE_RESET", null);
      expect(errnoOf(() => report(next, 0n, P))).toBe("EINVAL");
    });

    it("loses no write and makes none up, whatever is asked for", () => {
      const { client } = served();
      const { fd } = sharedMemory(1024 * PAGE);
      mapDma(client, { address: 0n, size: 1024n * P }, [fd]);
      closeSync(fd);
      fc.assert(
        fc.property(
          fc.nat(8),
          fc.array(fc.record({ page: fc.nat(1000), pages: fc.integer({ min: 1, max: 20 }) }), { maxLength: 12 }),
          fc.array(fc.record({ from: fc.nat(1023), pages: fc.integer({ min: 1, max: 300 }), shift: fc.nat(5) }), {
            maxLength: 6,
          }),
          (shift, writes, reads) => {
            const granule = PAGE << shift;
            start(client, [{ iova: 0n, length: 1024n * P }], BigInt(granule));
            const dirty = new Set<number>();
            for (const { page, pages } of writes) {
              dma(client, "WRITE_PAGES", { address: BigInt(page) * P, value: pages });
              for (let i = page; i < page + pages; i++) dirty.add((i * PAGE) >> (12 + shift));
            }
            for (const { from, pages, shift: coarser } of reads) {
              const size = PAGE << coarser;
              const found = bits(report(client, BigInt(from) * P, BigInt(pages) * P, BigInt(size)));
              const expected = new Set<number>();
              for (const each of [...dirty]) {
                // A granule that reaches into the range is taken as a whole.
                const first = Math.max(from * PAGE, each * granule);
                const end = Math.min((from + pages) * PAGE, (each + 1) * granule);
                if (first >= end) continue;
                for (let at = first; at < end; at++) {
                  const bit = Math.floor((at - from * PAGE) / size);
                  expected.add(bit);
                  at = from * PAGE + (bit + 1) * size - 1;
                }
                dirty.delete(each);
              }
              expect(found).toEqual([...expected].sort((a, b) => a - b));
            }
            stop(client);
          },
        ),
        { numRuns: 40 },
      );
    });
  });

  describe("migration data", () => {
    it("moves a device's state to another server, in parts of any size", async () => {
      const { client } = served();
      await using destination = await Served.start();
      client.writeRegister(0, 0x800, 0x1234);
      client.regionWrite(1, 5000, Uint8Array.of(1, 2, 3));
      const size = feature(client, GET | FEATURE.MIG_DATA_SIZE, undefined, 8);
      setState(client, "PRE_COPY");
      const parts: Uint8Array[] = [];
      const readAll = (bytes: number) => {
        for (;;) {
          const part = readData(client, bytes);
          parts.push(part);
          if (part.byteLength < bytes) return;
        }
      };
      readAll(1000);
      const initial = parts.reduce((sum, part) => sum + part.byteLength, 0);
      expect(initial).toBeGreaterThan(0);
      client.writeRegister(0, 0x804, 0x5678);
      // The next round has what changed.
      readAll(4096);
      expect(parts.reduce((sum, part) => sum + part.byteLength, 0)).toBeGreaterThan(initial);
      client.writeRegister(0, 0x808, 0x9abc);
      setState(client, "STOP_COPY");
      readAll(7);
      expect(readData(client, 100)).toHaveLength(0);
      expect(vfio_device_feature_mig_data_size.decode(size).stop_copy_length).toBeGreaterThan(0n);

      const all = Buffer.concat(parts);
      setState(destination.client, "RESUMING");
      for (let at = 0; at < all.byteLength; at += 777) writeData(destination.client, all.subarray(at, at + 777));
      setState(destination.client, "STOP");
      setState(destination.client, "RUNNING");
      expect([0x800, 0x804, 0x808].map((at) => destination.client.readRegister(0, at))).toEqual([
        0x1234, 0x5678, 0x9abc,
      ]);
      expect(destination.client.regionRead(1, 5000, 3)).toEqual(Uint8Array.of(1, 2, 3));
    });

    it("tells how much pre-copy data there is", () => {
      const { client } = served();
      const ask = () =>
        vfio_precopy_info.decode(
          client.call(DIRTMAP_COMMAND.PRECOPY_INFO, vfio_precopy_info, { argsz: vfio_precopy_info.size }).payload,
        );
      expect(errnoOf(ask)).toBe("EINVAL");
      setState(client, "PRE_COPY");
      const { initial_bytes, dirty_bytes } = ask();
      expect(initial_bytes).toBeGreaterThan(0n);
      expect(dirty_bytes).toBe(0n);
      readData(client, Number(initial_bytes));
      expect(ask()).toMatchObject({ initial_bytes: 0n, dirty_bytes: 0n });
      client.writeRegister(0, 0x800, 1);
      const changed = ask();
      expect(changed.initial_bytes).toBe(0n);
      expect(changed.dirty_bytes).toBeGreaterThan(0n);
      expect(readData(client, 100_000)).toHaveLength(Number(changed.dirty_bytes));
    });

    it("is refused in the wrong state, and in sizes that can't be; a state that is wrong puts the device into ERROR", () => {
      const { client } = served();
      const read = (argsz: number, size: number) =>
        errnoOf(() => client.call("MIG_DATA_READ", vfio_user_mig_data, { argsz, size }));
      expect(read(1008, 1000)).toBe("EINVAL");
      setState(client, "STOP_COPY");
      expect(read(1007, 1000)).toBe("EINVAL");
      expect(read(0xffffffff, 0x100001)).toBe("EINVAL");
      expect(errnoOf(() => writeData(client, new Uint8Array(8)))).toBe("EINVAL");
      setState(client, "STOP");
      setState(client, "RESUMING");
      const values = { argsz: 16, size: 9 };
      expect(
        errnoOf(() => client.call("MIG_DATA_WRITE", vfio_user_mig_data, values, { data: new Uint8Array(8) })),
      ).toBe("EINVAL");
      expect(errnoOf(() => writeData(client, new Uint8Array(64).fill(0xff)))).toBe("EINVAL");
      expect(errnoOf(() => setState(client, "STOP"))).toBe("EINVAL");
      expect(state(client)).toBe(STATE.ERROR);
      expect(errnoOf(() => setState(client, "RUNNING"))).toBe("EINVAL");
      client.request("DEVICE_RESET", null);
      expect(state(client)).toBe(STATE.RUNNING);
    });
  });

  describe("on a control connection", () => {
    it("track, move and count a device while its client uses it; using it is not for them", () => {
      const { client } = served();
      using control = served().control();
      using other = served().control();
      const { fd } = sharedMemory(8 * PAGE);
      mapDma(client, { address: 0n, size: 8n * P }, [fd]);
      closeSync(fd);
      start(control, [{ iova: 0n, length: 8n * P }]);
      dma(client, "WRITE", { address: 3n * P });
      expect(bits(report(control, 0n, 8n * P))).toEqual([3]);
      for (const someone of [client, other]) {
        expect(errnoOf(() => start(someone, [{ iova: 0n, length: P }]))).toBe("EINVAL");
        expect(errnoOf(() => report(someone, 0n, P))).toBe("EBUSY");
        expect(errnoOf(() => stop(someone))).toBe("EBUSY");
      }
      setState(other, "STOP");
      expect(state(control)).toBe(STATE.STOP);
      setState(other, "RUNNING");
      for (const command of ["REGION_READ", "REGION_WRITE", "DMA_MAP", "DMA_UNMAP", "DEVICE_SET_IRQS"] as const) {
        expect(errnoOf(() => control.request(command, null))).toBe("EPERM");
      }
      control[Symbol.dispose]();
      expect(client.readRegister(0, 0)).toBe(0);
    });

    it("leave the device's client alone when they go, and their log ends", async () => {
      const { client } = served();
      const { fd } = sharedMemory(PAGE);
      mapDma(client, { address: 0n, size: P }, [fd]);
      closeSync(fd);
      const control = served().control();
      start(control, [{ iova: 0n, length: P }]);
      control[Symbol.dispose]();
      expect(dma(client, "WRITE", { address: 0n })).toBe("done");
      for (let tries = 0; errnoOf(() => start(client, [{ iova: 0n, length: P }])) !== "none"; tries++) {
        if (tries > 100) throw new Error("the log of a client that is gone goes on");
      }
    });

    it("are refused where there are too many", async () => {
      const controls = Array.from({ length: 16 }, () => served().control());
      expect(() => served().control()).toThrow();
      await served().logged(/control client \d+ is refused/);
      for (const control of controls) control[Symbol.dispose]();
    });

    it("show counters, as JSON", () => {
      const { client } = served();
      using control = served().control();
      const ask = (argsz: number) => {
        const request = new Uint8Array(8);
        new DataView(request.buffer).setUint32(0, argsz, true);
        return control.request(DIRTMAP_COMMAND.COUNTERS, request).payload;
      };
      const needed = Buffer.from(ask(8)).readUInt32LE();
      const reply = ask(needed + 100);
      expect(reply.byteLength).toBeGreaterThan(8);
      expect(reply.at(-1)).toBe(0);
      const json = JSON.parse(Buffer.from(reply.subarray(8, -1)).toString("utf8"));
      expect(json).toMatchObject({
        schemaVersion: 1,
        id: "test",
        model: "test",
        state: "RUNNING",
        failure: null,
        log: null,
        dma: { regions: 0 },
      });
      expect(json.dma.writes).toBeGreaterThan(0);
      expect(client.readRegister(0, 0)).toBe(0);
    });
  });
});
