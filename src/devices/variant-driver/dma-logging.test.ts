import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { LoggedRange } from "../../host/dma-logging-checks.js";
import type { DmaLoggingLimits } from "../../host/host.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { DmaLog } from "../dma-log.js";
import { createLog, DmaLogging, deviceLogSource, type LogSource } from "./dma-logging.js";

const LIMITS: DmaLoggingLimits = {
  pageSizes: [4096, 65536],
  maxRanges: 1000,
  addressWidth: 64,
  readableWhen: "always",
};

const range = (iova: number | bigint, length: number | bigint): LoggedRange => ({
  iova: BigInt(iova),
  length: BigInt(length),
});
const page = (n: number) => range(n * PAGE_SIZE, PAGE_SIZE);
const scattered = (count: number) => Array.from({ length: count }, (_, i) => page(2 * i));
const TOP = 2n ** 64n;

/** Logging whose source writes down what it is asked for. */
function logging(limits: Partial<DmaLoggingLimits> = {}, own: Pick<Partial<LogSource>, "start"> = {}) {
  const calls: unknown[][] = [];
  const note =
    (name: string) =>
    async (...args: unknown[]) => {
      calls.push([name, ...args]);
    };
  const source: LogSource = {
    start: note("start"),
    startAll: note("startAll"),
    readAndClear: async (first, pages) => note("read")(first, pages),
    stop: note("stop"),
    ...own,
  };
  return { calls, it: new DmaLogging({ ...LIMITS, ...limits }, source) };
}

function query({ iova, length }: LoggedRange, { pageSize = 4096, of = range(iova, length || 4096n) } = {}) {
  return { iova, length, pageSize, clear: true, into: new DirtyBitmap({ ...of, granule: 4096 }) };
}

describe("the start of DMA logging", () => {
  it.each<[string, Partial<DmaLoggingLimits>, number, LoggedRange[]]>([
    ["as many ranges as fit a page of the kernel's", {}, 4096, scattered(256)],
    ["as many as the device takes", { maxRanges: 2 }, 4096, scattered(2)],
    ["ranges that touch", {}, 4096, [page(0), page(1)]],
    ["ranges in any order", {}, 4096, [page(5), page(1)]],
    ["one up to the end of what the log covers", { addressWidth: 32 }, 4096, [range(2n ** 32n - 4096n, 4096)]],
    ["one up to the last address but one", {}, 1, [range(TOP - 4097n, 4096)]],
  ])("takes %s", async (_, limits, pageSize, ranges) => {
    await expect(logging(limits).it.start(pageSize, ranges)).resolves.toBe(4096);
  });

  it.each<[string, string, Partial<DmaLoggingLimits>, number, LoggedRange[]]>([
    ["no range", "EINVAL", {}, 4096, []],
    ["more ranges than fit a page", "E2BIG", {}, 4096, scattered(257)],
    ["more than the device takes", "E2BIG", { maxRanges: 2 }, 4096, scattered(3)],
    ["a page size of 0", "EINVAL", {}, 0, [page(0)]],
    ["a page size that is no power of two", "EINVAL", {}, 12288, [page(0)]],
    ["a page size that is no whole number", "EINVAL", {}, 0.5, [page(0)]],
    ["a range below 0", "EINVAL", {}, 4096, [range(-4096, 8192)]],
    ["an empty range", "EINVAL", {}, 4096, [page(7), range(4096, 0)]],
    ["one of less than nothing", "EINVAL", {}, 4096, [range(8192, -4096)]],
    ["one that begins within a page", "EINVAL", {}, 4096, [range(512, 4096)]],
    ["one that ends within a page", "EINVAL", {}, 4096, [range(0, 512)]],
    ["one that ends at 2^64", "EOVERFLOW", {}, 4096, [range(TOP - 4096n, 4096)]],
    ["ranges that share a page", "EINVAL", {}, 4096, [range(0, 8192), page(1)]],
    ["the same, later and in disorder", "EINVAL", {}, 4096, [page(9), range(8192, 8192), page(0), page(3)]],
    [
      "one a page behind what the log covers",
      "EOPNOTSUPP",
      { addressWidth: 32 },
      4096,
      [range(2n ** 32n - 4096n, 8192)],
    ],
  ])("refuses %s with %s", async (_, code, limits, pageSize, ranges) => {
    const { it, calls } = logging(limits);
    await expect(it.start(pageSize, ranges)).rejects.toMatchObject({ code });
    expect(calls).toEqual([]);
    expect(it.ranges).toBeNull();
  });

  it("finds out that it is on before it counts the device's ranges, and after it counts the kernel's", async () => {
    const { it } = logging({ maxRanges: 2 });
    await it.start(4096, scattered(2));
    await expect(it.start(4096, scattered(3))).rejects.toMatchObject({ code: "EINVAL" });
    await expect(it.start(4096, scattered(257))).rejects.toMatchObject({ code: "E2BIG" });
  });

  it.each([
    [512, 4096],
    [4096, 4096],
    [32768, 4096],
    [65536, 65536],
    [2 ** 21, 65536],
  ])("chooses for %d bytes a page of %d", async (asked, chosen) => {
    const { it, calls } = logging();
    expect(await it.start(asked, [range(2 ** 21, 2 ** 21)])).toBe(chosen);
    expect(await logging().it.startAll(asked)).toBe(chosen);
    expect(calls).toEqual([["start", [{ page: 512, pages: 512 }], chosen]]);
  });

  it("asks for whole pages, sorted, and for each once", async () => {
    const { it, calls } = logging();
    // Halves of page 0, all of page 1 and the first half of page 2, the second half of page 5; then page 6.
    const ranges = [range(24576, 4096), range(22528, 2048), range(0, 2048), range(2048, 2048), range(4096, 6144)];
    await it.start(2048, ranges);
    const pages = [
      { page: 0, pages: 1 },
      { page: 1, pages: 2 },
      { page: 5, pages: 1 },
      { page: 6, pages: 1 },
    ];
    expect(calls).toEqual([["start", pages, 4096]]);
    expect(it.ranges).toEqual(pages);
    const more = logging();
    await more.it.start(2048, [range(0, 2048), range(2048, 6144), range(8192, 4096)]);
    expect(more.it.ranges).toEqual([
      { page: 0, pages: 2 },
      { page: 2, pages: 1 },
    ]);
  });

  it("leaves it off where the device can't", async () => {
    const { it } = logging({}, { start: () => Promise.reject(new Error("no memory")) });
    await expect(it.start(4096, [page(0)])).rejects.toThrow("no memory");
    expect(it.ranges).toBeNull();
  });
});

describe("DMA logging of everything", () => {
  it("covers all addresses that the device has", async () => {
    const { it, calls } = logging({ addressWidth: 48 });
    await it.startAll(4096);
    expect(it.ranges).toEqual([{ page: 0, pages: 2 ** 36 }]);
    expect(calls).toEqual([["startAll", 4096]]);
    await expect(it.startAll(4096)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(it.start(4096, [page(0)])).rejects.toMatchObject({ code: "EINVAL" });
  });

  it.each([0, 12288, 0.5])("refuses a page size of %d", async (pageSize) => {
    await expect(logging().it.startAll(pageSize)).rejects.toMatchObject({ code: "EINVAL" });
  });

  it("is refused, and stays off, where a device needs ranges", async () => {
    const none = () => Promise.resolve();
    const it = new DmaLogging(LIMITS, { start: none, readAndClear: none, stop: none });
    await expect(it.startAll(4096)).rejects.toMatchObject({ code: "EOPNOTSUPP" });
    expect(it.ranges).toBeNull();
  });
});

describe("the report of DMA logging", () => {
  const started = async (limits: Partial<DmaLoggingLimits> = {}) => {
    const made = logging(limits);
    await made.it.start(4096, [range(4 * 4096, 4 * 4096), range(16 * 4096, 4096)]);
    made.calls.length = 0;
    return made;
  };

  it.each<[string, LoggedRange, unknown[][]]>([
    ["nothing", range(4 * 4096, 0), []],
    ["what lies before", range(0, 4 * 4096), []],
    ["what lies between", range(8 * 4096, 8 * 4096), []],
    ["what lies behind", range(17 * 4096, 4096), []],
    ["one", range(4 * 4096, 4 * 4096), [["read", 4, 4]]],
    ["a part of one", range(5 * 4096, 2 * 4096), [["read", 5, 2]]],
    ["the end of one", range(7 * 4096, 4 * 4096), [["read", 7, 1]]],
    [
      "all, and more",
      range(0, 100 * 4096),
      [
        ["read", 4, 4],
        ["read", 16, 1],
      ],
    ],
    ["a byte of a page", range(5 * 4096 + 100, 1), [["read", 5, 1]]],
    ["two bytes of two pages", range(6 * 4096 - 1, 2), [["read", 5, 2]]],
  ])("reads of its ranges %s", async (_, asked, calls) => {
    const made = await started();
    await made.it.report(query(asked), false);
    expect(made.calls).toEqual(calls);
  });

  it.each<[string, string, ReturnType<typeof query>]>([
    ["a page size below the kernel's", "EINVAL", query(page(4), { pageSize: 2048 })],
    ["a page size that is no power of two", "EINVAL", query(page(4), { pageSize: 12288 })],
    ["a page size that is no whole number", "EINVAL", query(page(4), { pageSize: Number.NaN })],
    ["a page size that the bitmap has not", "EINVAL", query(page(4), { pageSize: 8192 })],
    ["a range below 0", "EOVERFLOW", query(range(-4096, 4096))],
    ["less than nothing", "EOVERFLOW", query(range(4096, -4096), { of: page(0) })],
    ["a range up to 2^64", "EOVERFLOW", query(range(TOP - 4096n, 4096))],
    ["a bitmap that begins later", "EINVAL", query(range(4 * 4096, 8192), { of: page(5) })],
    ["a bitmap that ends earlier", "EINVAL", query(range(4 * 4096, 8192), { of: page(4) })],
  ])("refuses %s with %s", async (_, code, asked) => {
    const made = await started();
    await expect(made.it.report(asked, true)).rejects.toMatchObject({ code });
    expect(made.calls).toEqual([]);
  });

  it("takes a range up to the last address but one, and a bitmap that is longer on both sides", async () => {
    const made = await started();
    await made.it.report(query(range(TOP - 4097n, 4096)), false);
    await made.it.report(query(page(4), { of: range(0, 100 * 4096) }), false);
    expect(made.calls).toEqual([["read", 4, 1]]);
  });

  it("is refused while logging is off", async () => {
    await expect(logging().it.report(query(page(4)), true)).rejects.toMatchObject({ code: "EINVAL" });
  });

  it("waits for a device that does DMA where its log can't be read meanwhile", async () => {
    const made = await started({ readableWhen: "quiesced" });
    await expect(made.it.report(query(page(4)), false)).rejects.toMatchObject({ code: "EBUSY" });
    expect(made.calls).toEqual([]);
    await made.it.report(query(page(4)), true);
    expect(made.calls).toEqual([["read", 4, 1]]);
  });
});

describe("the end of DMA logging", () => {
  it("reaches the device once", async () => {
    const { it, calls } = logging();
    await it.stop();
    expect(calls).toEqual([]);
    await it.start(4096, [page(0)]);
    await it.stop();
    await it.stop();
    expect(calls.map(([name]) => name)).toEqual(["start", "stop"]);
    expect(it.ranges).toBeNull();
  });
});

describe("a log in the device's own memory", () => {
  it("is drained after each read, and taken away at the end", async () => {
    const done: string[] = [];
    let log: DmaLog | null = null;
    const source = deviceLogSource({
      setLog: async (posted) => {
        log = posted === null ? null : DmaLog.open(posted);
        done.push(posted === null ? "off" : "on");
      },
      flush: async () => {
        // What is marked meanwhile belongs to the next read: this one has taken its bits.
        log?.mark(2);
        done.push("drained");
      },
    });
    const read = async () => {
      const asked = query(range(0, 4 * 4096));
      await source.readAndClear(0, 4, asked);
      return [0, 1, 2, 3].filter((bit) => asked.into.get(bit));
    };
    await source.start([{ page: 0, pages: 4 }], 4096);
    (log as DmaLog | null)?.mark(1);
    expect(await read()).toEqual([1]);
    expect(await read()).toEqual([2]);
    await source.stop();
    expect(done).toEqual(["on", "drained", "drained", "off"]);
    expect(await read()).toEqual([]);
  });

  it("that would be too long is refused as memory that isn't there", () => {
    expect(() => createLog([{ page: 0, pages: 2 ** 40 }], 4096)).toThrow(expect.objectContaining({ code: "ENOMEM" }));
  });
});
