import { afterEach, describe, expect, it, vi } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { DmaLog } from "../../devices/dma-log.js";
import { SparseLog } from "../../devices/sparse-log.js";
import { DmaLogging } from "../../devices/variant-driver/dma-logging.js";
import type { DmaLoggingLimits } from "../../host/host.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { isErrno } from "../../uapi/errno.js";
import { ClientMemory } from "./client-memory.js";
import type { DmaChannel } from "./dma-channel.js";
import { ServedLog } from "./dma-logging.js";

const LIMITS: DmaLoggingLimits = {
  pageSizes: [4096, 65536],
  maxRanges: 4,
  addressWidth: 52,
  readableWhen: "always",
};
const USER = { name: "a client" };
/** Nothing is asked of the client here: no DMA is done. */
const NO_CHANNEL = {} as DmaChannel;

const disposables: Disposable[] = [];
afterEach(() => {
  vi.restoreAllMocks();
  for (const disposable of disposables.splice(0)) disposable[Symbol.dispose]();
});

function logOf(limits = LIMITS) {
  const memory = new ClientMemory("messages");
  disposables.push(memory);
  const log = new ServedLog(memory, limits);
  return {
    memory,
    log,
    /** Maps a page, as VFIO_USER_DMA_MAP does; returns whether the log still covers all. */
    map(page: number): boolean {
      const region = { page, pages: 1, readable: true, writeable: true, offset: 0, fileIo: false };
      memory.map(region, undefined, NO_CHANNEL);
      return log.covers(region);
    },
    async dirty(page: number, pages: number): Promise<number[]> {
      const range = { iova: BigInt(page) << 12n, length: BigInt(pages * PAGE_SIZE) };
      const into = new DirtyBitmap({ ...range, granule: 4096 });
      await log.report({ ...range, pageSize: 4096, into }, USER);
      const found: number[] = [];
      into.forEachPageRun((first, count) => {
        for (let i = 0; i < count; i++) found.push(first + i);
      });
      return found;
    },
  };
}

describe("a log of everything", () => {
  it("does nothing for a map, however many there are", async () => {
    const { log, memory, map, dirty } = logOf();
    const starts = vi.spyOn(DmaLogging.prototype, "startAll");
    const logs = vi.spyOn(DmaLog, "create");
    await log.start(4096, [], USER);
    const looks = vi.spyOn(memory, "regions");
    const same = memory.log;
    for (let i = 0; i < 2000; i++) expect(map(i * 1000)).toBe(true);
    expect(starts).toHaveBeenCalledTimes(1);
    expect(logs).not.toHaveBeenCalled();
    expect(looks).not.toHaveBeenCalled();
    expect(memory.log).toBe(same);
    memory.log?.mark(1_999_000);
    memory.log?.mark(0);
    expect(await dirty(0, 2_000_000)).toEqual([0, 1_999_000]);
    expect(await dirty(0, 2_000_000)).toEqual([]);
  });

  it("tells what is mapped when asked what is logged", async () => {
    const { log, map } = logOf();
    map(7);
    await log.start(4096, [], USER);
    map(9);
    expect(log.state).toMatchObject({ granule: 4096, startedBy: "a client" });
    expect(log.state?.ranges).toMatchObject([
      { page: 7, pages: 1 },
      { page: 9, pages: 1 },
    ]);
    await log.stop(USER);
    expect(log.state).toBeNull();
  });

  it("reaches up to the device's last address and no further", async () => {
    const { log, map } = logOf();
    await log.start(4096, [], USER);
    expect(map(2 ** 40 - 1)).toBe(true);
    expect(map(2 ** 40)).toBe(false);
    // As its caller does then: whatever was written counts as dirty.
    await log.end();
    const outcome = await log.start(4096, [], USER).catch((error: unknown) => error);
    expect(isErrno(outcome, "EOPNOTSUPP")).toBe(true);
    // A refusal leaves nothing behind.
    expect(log.state).toBeNull();
    await log.start(4096, [{ iova: 0n, length: 4096n }], USER);
    expect(log.state?.ranges).toEqual([{ page: 0, pages: 1 }]);
  });

  it("covers all pages of a 64-bit device but the topmost, which nobody can map", async () => {
    const { log, map, memory, dirty } = logOf({ ...LIMITS, addressWidth: 64 });
    expect(await log.start(65536, [], USER)).toBe(65536);
    expect(map(2 ** 52 - 17)).toBe(true);
    memory.log?.mark(2 ** 52 - 17);
    expect((await dirty(2 ** 52 - 32, 16)).length).toBe(16);
    expect(map(2 ** 52 - 2)).toBe(true);
    memory.log?.mark(2 ** 52 - 2);
    expect(await dirty(2 ** 52 - 2, 1)).toEqual([2 ** 52 - 2]);
  });

  it("refuses to be read, until it is started anew, where it has lost a mark", async () => {
    const { log, memory, dirty } = logOf();
    await log.start(4096, [], USER);
    expect(memory.log).toBeInstanceOf(SparseLog);
    vi.spyOn(memory.log as SparseLog, "lost", "get").mockReturnValue(true);
    const outcome = await dirty(0, 1).catch((error: unknown) => error);
    expect(isErrno(outcome, "ENOMEM")).toBe(true);
    await log.stop(USER);
    await log.start(4096, [], USER);
    expect(await dirty(0, 1)).toEqual([]);
  });

  it.each([0, 3, 4095])("refuses a page size of %d, as one of ranges does", async (pageSize) => {
    const { log } = logOf();
    const outcome = await log.start(pageSize, [], USER).catch((error: unknown) => error);
    expect(isErrno(outcome, "EINVAL")).toBe(true);
  });
});
