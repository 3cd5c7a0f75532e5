import { readdirSync } from "node:fs";
import fc from "fast-check";
import { expect } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { DirtmapError } from "../../errors.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { DmaMemory } from "../../memory/dma-memory.js";
import { within } from "../../threads/within.js";
import { VFIO_USER_COMMAND } from "../../uapi/vfio-user.js";
import { BAR1_BYTES, TEST_COMMAND, TEST_REGISTER } from "../server/test-model.test.helper.js";
import { VfioUserHost } from "./host.js";
import type { Mischief } from "./hostile-server.test.helper.js";

/*
 * For tests: what a server can do wrong, and a client that uses its device in every way that there is.
 */

/** How long a server that drops answers may take; each of those costs this. */
export const LIMIT_MS = 60;
/** How long one may take that drops none, on a busy machine. */
export const HONEST_LIMIT_MS = 10_000;
/** A call that has not ended by then never will. */
const HANG_MS = 20_000;
/** Messages that the server sends while a client does all of {@link use}. */
export const MESSAGES = 70;

const RANGE = { iova: BigInt(MiB), length: BigInt(MiB) };
const LARGE = [0, 1, 15, 16, 17, 4095, 4096, 0x7fffffff, 0x80000000, 0xffffffff];

const word = fc.oneof(fc.constantFrom(...LARGE), fc.nat(300));
/** Anything that a server can do wrong. */
export const mischief: fc.Arbitrary<Mischief> = fc.oneof(
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom("drop", "twice", "hang-up", "descriptor") }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("shorten", "lengthen"),
      bytes: fc.oneof(fc.nat(40), fc.constantFrom(4096, 2 ** 20, 2 ** 20 + 8192)),
      honest: fc.boolean(),
    }),
  },
  {
    weight: 3,
    arbitrary: fc
      .record({
        kind: fc.constant("header" as const),
        field: fc.constantFrom("msg_id", "cmd", "msg_size", "flags", "error"),
        value: word,
      })
      .map((one) => ({
        ...one,
        value: one.field === "msg_id" || one.field === "cmd" ? one.value & 0xffff : one.value,
      })),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("payload" as const), word: fc.nat(12), value: word }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("noise" as const), bytes: fc.integer({ min: 1, max: 200 }) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("demand" as const),
      command: fc.constantFrom(VFIO_USER_COMMAND.DMA_READ, VFIO_USER_COMMAND.DMA_WRITE, 1, 16, 999),
      address: fc.oneof(
        fc.constantFrom(0n, RANGE.iova, 2n ** 64n - 1n, 2n * RANGE.iova - 8n),
        fc.bigInt(0n, 2n ** 64n - 1n),
      ),
      count: fc.oneof(fc.constantFrom(0n, 16n, 4096n, 2n ** 20n, 2n ** 63n), fc.bigInt(0n, 2n ** 64n - 1n)),
    }),
  },
);

/** Uses a device in every way that there is; what can't be done is refused, and the rest is tried all the same. */
export async function use(path: string, limitMs: number): Promise<string[]> {
  const refused: string[] = [];
  const attempt = async <T>(what: string, call: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await within(call(), HANG_MS, what);
    } catch (error) {
      if (!(error instanceof DirtmapError) || error.code === "THREAD_TIMEOUT") throw error;
      refused.push(`${what}: ${error.code}`);
      return undefined;
    }
  };
  using memory = DmaMemory.allocate(MiB, { kind: "memfd" });
  const host = new VfioUserHost([{ path, id: "t" }], { limitMs });
  try {
    const iommufd = await host.openIommufd();
    const ioas = await iommufd.allocIoas();
    const span = { arena: memory.arena, offset: memory.offset, length: MiB };
    await iommufd.map(ioas, span, { iova: RANGE.iova, readable: true, writeable: true });
    const device = await attempt("open", () => host.openDevice("t"));
    if (device === undefined) return refused;
    await attempt("bind", () => device.bind(iommufd));
    await attempt("attach", () => device.attach(ioas));
    await attempt("migration", () => device.migration());
    await attempt("flags", () => device.trackingFlags());
    await attempt("limits", () => device.dmaLoggingLimits());
    const granule = await attempt("start", () => device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [RANGE] }));
    if (granule !== undefined) expect(Math.log2(granule) % 1).toBe(0);
    await attempt("write", async () => {
      const registers = Buffer.alloc(20);
      registers.writeBigUInt64LE(RANGE.iova, 0);
      registers.writeUInt32LE(4, TEST_REGISTER.BYTES - TEST_REGISTER.ADDRESS);
      registers.writeUInt32LE(TEST_COMMAND.WRITE, TEST_REGISTER.COMMAND - TEST_REGISTER.ADDRESS);
      await device.regionWrite(0, TEST_REGISTER.ADDRESS, registers.subarray(0, 16));
      await device.regionWrite(0, TEST_REGISTER.COMMAND, registers.subarray(16));
    });
    for (let i = 0; i < 3; i++) {
      const read = await attempt("read", () => device.regionRead(1, 4, 300));
      if (read !== undefined) expect(read).toHaveLength(300);
      const into = new DirtyBitmap({ ...RANGE, granule: PAGE_SIZE });
      await attempt("report", () => device.reportDmaLogging({ ...RANGE, pageSize: PAGE_SIZE, into }));
    }
    await attempt("outside", () => device.regionRead(1, BAR1_BYTES, 1));
    await attempt("stop", () => device.stopDmaLogging());
    for (const state of ["PRE_COPY", "STOP_COPY", "STOP", "RESUMING", "STOP", "RUNNING"] as const) {
      const stream = await attempt(state, () => device.setState(state));
      await attempt("size", () => device.dataSize());
      if (stream?.direction === "saving") {
        await attempt("info", () => stream.precopyInfo());
        for (let i = 0; i < 8; i++) await attempt("data", () => stream.read(4096));
      } else if (stream?.direction === "resuming") {
        await attempt("data", () => stream.write(new Uint8Array(5000)));
      }
    }
    await attempt("counters", () => device.serverCounters());
    await attempt("reset", () => device.reset());
    await attempt("unmap", () => iommufd.unmap(ioas, RANGE.iova, RANGE.length));
    await attempt("close", () => device[Symbol.asyncDispose]());
    return refused;
  } finally {
    await host[Symbol.asyncDispose]();
  }
}

/** Open descriptors, once what ends by itself has ended. */
export async function descriptors(most: number): Promise<number> {
  for (let tries = 0; ; tries++) {
    const { length } = readdirSync("/proc/self/fd");
    if (length <= most || tries === 200) return length;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
