import { createSocket } from "node:dgram";
import { describe, expect, it } from "vitest";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import { enableBusMaster } from "../../devices/workload.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { BLK, bench, eventually, MLX5, RAM, ramBitmap, stampsOf } from "./bench.test.helper.js";

describe("the DMA logging of a device", () => {
  const start = (pageSize: number, ranges: { iova: bigint; length: bigint }[] = [RAM]) => ({ pageSize, ranges });

  it("reports what was written, once", async () => {
    const { device, memory } = await bench([{ ...MLX5, dmaLogging: { pageSizes: [4096, 65536] } }]);
    const mlx5 = device("mlx0");
    expect(await mlx5.startDmaLogging(start(4096))).toBe(4096);
    await enableBusMaster(mlx5);
    const socket = createSocket("udp4");
    const { udpPort } = await mlx5.counters();
    await eventually(async () => {
      for (let i = 0; i < 10; i++) socket.send(Buffer.alloc(2000, 7), udpPort, "127.0.0.1");
      return (await mlx5.counters()).units > 60;
    });
    socket.close();
    await mlx5.setState("STOP");
    const into = ramBitmap();
    await mlx5.reportDmaLogging({ ...RAM, pageSize: 4096, into });
    const { spans, lastSequence } = await stampsOf(mlx5);
    expect(into.count()).toBe(Math.min(lastSequence, 100));
    into.forEachPageRun((first, pages) => {
      expect(spans.some((s) => first >= s.firstPage && first + pages <= s.firstPage + s.pages)).toBe(true);
    });
    const again = ramBitmap();
    await mlx5.reportDmaLogging({ ...RAM, pageSize: 4096, into: again });
    expect(again.count()).toBe(0);
    expect(stampsIntact(checkStamps(memory, await stampsOf(mlx5)))).toBe(true);
  });

  it("chooses a page size that the device has, up to the one asked for", async () => {
    const { device } = await bench([{ ...MLX5, dmaLogging: { pageSizes: [2 * MiB, 8192] } }]);
    const mlx5 = device("mlx0");
    for (const [asked, chosen] of [
      [4096, 8192],
      [8192, 8192],
      [65536, 8192],
    ]) {
      expect(await mlx5.startDmaLogging(start(asked))).toBe(chosen);
      await mlx5.stopDmaLogging();
    }
    expect(await mlx5.startDmaLogging(start(4 * MiB, [{ iova: 0n, length: BigInt(8 * MiB) }]))).toBe(2 * MiB);
  });

  it("refuses as Linux does", async () => {
    const { device } = await bench([
      BLK,
      { ...MLX5, dmaLogging: { maxRanges: 2, addressWidth: 32, pageSizes: [4096] } },
    ]);
    const mlx5 = device("mlx0");
    const range = (iova: number | bigint, length: number | bigint) => ({ iova: BigInt(iova), length: BigInt(length) });
    const page = (n: number) => range(n * PAGE_SIZE, PAGE_SIZE);
    const cases: [string, number, { iova: bigint; length: bigint }[]][] = [
      ["EINVAL", 4096, []],
      ["E2BIG", 4096, Array.from({ length: 257 }, (_, i) => page(2 * i))],
      ["E2BIG", 4096, [page(0), page(2), page(4)]],
      ["EINVAL", 4096, [range(100, 4096)]],
      ["EINVAL", 4096, [range(0, 100)]],
      ["EINVAL", 4096, [range(0, 0)]],
      ["EINVAL", 5000, [page(0)]],
      ["EINVAL", 0, [page(0)]],
      ["EINVAL", 4096, [range(0, 8192), range(4096, 4096)]],
      ["EINVAL", 4096, [range(4096, 4096), range(0, 8192)]],
      ["EOVERFLOW", 4096, [range(2n ** 64n - 4096n, 8192)]],
      ["EOPNOTSUPP", 4096, [range(2n ** 32n, 4096)]],
    ];
    for (const [code, pageSize, ranges] of cases) {
      await expect(mlx5.startDmaLogging({ pageSize, ranges }), `${code} ${ranges.length}`).rejects.toMatchObject({
        code,
      });
    }
    const query = { ...RAM, pageSize: 4096, into: ramBitmap() };
    await expect(mlx5.reportDmaLogging(query)).rejects.toMatchObject({ code: "EINVAL" });
    await mlx5.startDmaLogging(start(4096));
    await expect(mlx5.startDmaLogging(start(4096))).rejects.toMatchObject({ code: "EINVAL" });
    await expect(mlx5.reportDmaLogging({ ...query, pageSize: 2048 })).rejects.toMatchObject({ code: "EINVAL" });
    await expect(mlx5.reportDmaLogging({ ...query, pageSize: 12288 })).rejects.toMatchObject({ code: "EINVAL" });
    const high = { ...query, iova: 2n ** 64n - 4096n, length: 8192n };
    await expect(mlx5.reportDmaLogging(high)).rejects.toMatchObject({ code: "EOVERFLOW" });
    await mlx5.stopDmaLogging();
    await mlx5.stopDmaLogging();
    await expect(device("blk0").startDmaLogging(start(4096))).rejects.toMatchObject({ code: "ENOTTY" });
    await expect(device("blk0").reportDmaLogging(query)).rejects.toMatchObject({ code: "ENOTTY" });
    await expect(device("blk0").stopDmaLogging()).rejects.toMatchObject({ code: "ENOTTY" });
  });

  it("refuses ranges that need more memory than a log can have, and stays off", async () => {
    const { device } = await bench([{ ...MLX5, dmaLogging: { addressWidth: 60, pageSizes: [4096] } }]);
    const huge = { iova: 0n, length: 1n << 58n };
    await expect(device("mlx0").startDmaLogging(start(4096, [huge]))).rejects.toMatchObject({ code: "ENOMEM" });
    expect(await device("mlx0").startDmaLogging(start(4096))).toBe(4096);
  });

  it("is ended by a reset", async () => {
    const { device } = await bench([MLX5]);
    await device("mlx0").startDmaLogging(start(4096));
    await device("mlx0").reset();
    const query = { ...RAM, pageSize: 4096, into: ramBitmap() };
    await expect(device("mlx0").reportDmaLogging(query)).rejects.toMatchObject({ code: "EINVAL" });
    expect(await device("mlx0").startDmaLogging(start(4096))).toBe(4096);
  });

  it("can be readable only while the device does no DMA", async () => {
    const { device } = await bench([{ ...MLX5, dmaLogging: { readableWhen: "quiesced" } }]);
    const mlx5 = device("mlx0");
    await mlx5.startDmaLogging(start(4096));
    const query = { ...RAM, pageSize: 4096, into: ramBitmap() };
    await expect(mlx5.reportDmaLogging(query)).rejects.toMatchObject({ code: "EBUSY" });
    for (const state of ["RUNNING_P2P", "STOP"] as const) {
      await mlx5.setState(state);
      await mlx5.reportDmaLogging(query);
    }
  });

  it("does not answer before a DMA has landed that had stopped between translation and store", async () => {
    // At this rate each datagram goes to one buffer.
    const { device, holds } = await bench([{ ...MLX5, load: { rate: 5, footprint: 100 * PAGE_SIZE } }]);
    const mlx5 = device("mlx0");
    await mlx5.startDmaLogging(start(4096));
    await enableBusMaster(mlx5);
    const hold = holds.get("mlx0");
    if (hold === undefined) throw new Error("no hold");
    hold.arm();
    const { udpPort } = await mlx5.counters();
    const socket = createSocket("udp4");
    socket.send(Buffer.alloc(500, 7), udpPort, "127.0.0.1");
    await eventually(() => hold.holding);
    let [reported, stopped] = [false, false];
    const into = ramBitmap();
    const report = mlx5.reportDmaLogging({ ...RAM, pageSize: 4096, into }).then(() => {
      reported = true;
    });
    const stop = mlx5.setState("STOP").then(() => {
      stopped = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect([reported, stopped]).toEqual([false, false]);
    hold.release();
    await Promise.all([report, stop]);
    socket.close();
    // The mark follows the store: it is there for this read or for the next.
    const next = ramBitmap();
    await mlx5.reportDmaLogging({ ...RAM, pageSize: 4096, into: next });
    expect(into.count() + next.count()).toBe(1);
  });
});
