import { createSocket } from "node:dgram";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { MLX5_QUEUES_REGISTER } from "../../devices/mlx5.js";
import { REGION } from "../../devices/pci-model.js";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import type { DataStream, ResumingStream, SavingStream } from "../../host/host.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { createGuestMemory } from "../../memory/guest-memory.js";
import { type Bench, describeMachine, eventually, openBench } from "./bench.fixture.js";

const FOOTPRINT = 100 * PAGE_SIZE;
const BLK = { model: "blk", id: "blk0", iommu: "iommu0", load: { rate: 20, footprint: FOOTPRINT } };
const MLX5 = { model: "mlx5", id: "mlx0", iommu: "iommu0", load: { rate: 20, footprint: FOOTPRINT } };
const NIC = { model: "nic", id: "nic0", iommu: "iommu0", load: { rate: 20, footprint: FOOTPRINT } };
const VGPU = { model: "vgpu", id: "vgpu0", load: { rate: 20, footprint: 2 * FOOTPRINT }, vram: 64 * 1024 };

const open: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each[Symbol.asyncDispose]();
});

async function bench(devices: readonly object[], options: Parameters<typeof openBench>[1] = {}): Promise<Bench> {
  const opened = await openBench(describeMachine(devices), options);
  open.push(opened);
  return opened;
}

function saving(stream: DataStream | null): SavingStream {
  if (stream?.direction !== "saving") throw new Error("no saving stream");
  return stream;
}

function resuming(stream: DataStream | null): ResumingStream {
  if (stream?.direction !== "resuming") throw new Error("no resuming stream");
  return stream;
}

async function readAll(stream: SavingStream, bytes = 4000): Promise<Uint8Array[]> {
  const parts: Uint8Array[] = [];
  for (let part = await stream.read(bytes); part.byteLength > 0; part = await stream.read(bytes)) parts.push(part);
  return parts;
}

/** All of RAM above 1 MiB: one mapped area. */
function ramBitmap(pageSize = PAGE_SIZE): DirtyBitmap {
  return new DirtyBitmap({ iova: BigInt(MiB), length: BigInt(7 * MiB), granule: pageSize });
}

const RAM = { iova: BigInt(MiB), length: BigInt(7 * MiB) };

describe("an emulated VFIO device", () => {
  it("does DMA once its driver has enabled bus mastering, through its IOMMU, and stops with all of it landed", async () => {
    const { device, memory } = await bench([BLK]);
    const blk = device("blk0");
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect((await blk.counters()).units).toBe(0);
    await blk.enableBusMaster();
    await eventually(async () => (await blk.counters()).units > 150);
    await blk.setState("STOP");
    const stopped = await blk.counters();
    expect(stampsIntact(checkStamps(memory, await blk.stamps()))).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect((await blk.counters()).units).toBe(stopped.units);
    expect(stopped.faults).toBe(0);
  });

  it("answers a change of state within a few milliseconds", async () => {
    const { device } = await bench([BLK]);
    const blk = device("blk0");
    await blk.enableBusMaster();
    const times: number[] = [];
    for (let i = 0; i < 15; i++) {
      await blk.setState("RUNNING");
      const from = performance.now();
      await blk.setState("STOP");
      times.push(performance.now() - from);
    }
    // The median: the machine that tests run on is shared.
    expect(times.sort((a, b) => a - b)[7]).toBeLessThan(15);
  });

  it("is blocked, not stopped, while detached, and goes on after an attach", async () => {
    const { device, ioas } = await bench([BLK]);
    const blk = device("blk0");
    await blk.enableBusMaster();
    await eventually(async () => (await blk.counters()).units > 5);
    await blk.detach();
    const { units } = await blk.counters();
    await eventually(async () => (await blk.counters()).faults > 2);
    expect((await blk.counters()).units).toBe(units);
    await blk.attach(ioas);
    await eventually(async () => (await blk.counters()).units > units);
  });

  it("refuses a second bind, and to attach unbound", async () => {
    const { device, iommufd } = await bench([BLK]);
    const blk = device("blk0");
    await expect(blk.bind(iommufd)).rejects.toMatchObject({ code: "EINVAL" });
    await blk[Symbol.asyncDispose]();
    await expect(blk.attach(1)).rejects.toMatchObject({ code: "EBADF" });
  });

  it("refuses accesses outside its regions", async () => {
    const { device } = await bench([BLK]);
    await expect(device("blk0").regionRead(REGION.BAR0, 4094, 4)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(device("blk0").regionRead(REGION.BAR2, 0, 1)).rejects.toMatchObject({ code: "EINVAL" });
  });

  it("says which features it has", async () => {
    const { device } = await bench([BLK, MLX5, VGPU]);
    const of = async (id: string) => ({
      migration: await device(id).supports("MIGRATION"),
      log: await device(id).supports("DMA_LOGGING_START"),
      precopy: await device(id).supports("MIG_PRECOPY_INFOv2"),
      flags: await device(id).trackingFlags(),
    });
    const flags = (tracksInternally: boolean) => ({ tracksInternally, tracksThroughContainer: false });
    expect(await of("blk0")).toEqual({ migration: true, log: false, precopy: false, flags: flags(false) });
    expect(await of("mlx0")).toEqual({ migration: true, log: true, precopy: true, flags: flags(true) });
    expect(await of("vgpu0")).toEqual({ migration: true, log: true, precopy: true, flags: flags(true) });
  });
});

describe("the migration states of a device", () => {
  it("stop only P2P in RUNNING_P2P where the device can tell P2P apart, and everything where it can't", async () => {
    const { device } = await bench([BLK, VGPU]);
    for (const id of ["blk0", "vgpu0"]) {
      await device(id).enableBusMaster();
      await eventually(async () => (await device(id).counters()).units > 5);
      await device(id).setState("RUNNING_P2P");
    }
    const before = { blk: (await device("blk0").counters()).units, vgpu: (await device("vgpu0").counters()).units };
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect((await device("blk0").counters()).units).toBeGreaterThan(before.blk);
    expect((await device("vgpu0").counters()).units).toBe(before.vgpu);
  });

  it("go to ERROR with EIO when the device fails, and a reset leads back to RUNNING", async () => {
    const { device } = await bench([MLX5]);
    const mlx5 = device("mlx0");
    mlx5.failNext({ from: "RUNNING_P2P", to: "STOP" });
    await expect(mlx5.setState("STOP_COPY")).rejects.toMatchObject({ code: "EIO" });
    expect(await mlx5.state()).toBe("ERROR");
    await expect(mlx5.setState("RUNNING")).rejects.toMatchObject({ code: "EINVAL" });
    await mlx5.reset();
    expect(await mlx5.state()).toBe("RUNNING");
    await mlx5.setState("STOP");
    expect(await mlx5.state()).toBe("STOP");
  });

  it("refuse what the device does not support, and leave it where it was", async () => {
    const { device } = await bench([BLK]);
    await expect(device("blk0").setState("PRE_COPY")).rejects.toMatchObject({ code: "EINVAL" });
    await expect(device("blk0").setState("ERROR")).rejects.toMatchObject({ code: "EINVAL" });
    expect(await device("blk0").state()).toBe("RUNNING");
  });

  it("carry a device over to another machine, where its workload goes on without a gap", async () => {
    for (const description of [BLK, VGPU]) {
      const source = await bench([description], { incarnation: 1 });
      const from = source.device(description.id);
      await from.enableBusMaster();
      await eventually(async () => (await from.counters()).units > 150);
      const stream = saving(await from.setState("STOP_COPY"));
      const expected = await from.dataSize();
      const parts = await readAll(stream, 1000);
      expect(parts.reduce((sum, part) => sum + part.byteLength, 0)).toBe(expected);

      const destination = await bench([description], { incarnation: 2, memory: source.memory });
      const to = destination.device(description.id);
      const target = resuming(await to.setState("RESUMING"));
      // Other segments than those that were read.
      const whole = Buffer.concat(parts);
      for (let at = 0; at < whole.length; at += 777) await target.write(whole.subarray(at, at + 777));
      await to.setState("STOP");
      const { lastSequence } = await from.counters();
      expect((await to.counters()).lastSequence).toBe(lastSequence);
      await to.setState("RUNNING");
      await eventually(async () => (await to.counters()).lastSequence > lastSequence + 20);
      await to.setState("STOP");
      expect(stampsIntact(checkStamps(destination.memory, await to.stamps()))).toBe(true);
    }
  });

  it("fail a resume with EINVAL and ERROR where data is missing, spoilt, or of another model", async () => {
    const { device } = await bench([MLX5, NIC]);
    const mlx5 = device("mlx0");
    const whole = Buffer.concat(await readAll(saving(await mlx5.setState("STOP_COPY"))));
    const resume = async (data: Uint8Array) => {
      await mlx5.reset();
      await resuming(await mlx5.setState("RESUMING")).write(data);
      await mlx5.setState("STOP");
    };
    await resume(whole);
    await expect(resume(whole.subarray(0, -20))).rejects.toMatchObject({ code: "EINVAL" });
    expect(await mlx5.state()).toBe("ERROR");
    await expect(resume(whole.subarray(0, whole.length - 5))).rejects.toMatchObject({ code: "EINVAL" });
    const spoilt = Buffer.from(whole);
    spoilt[spoilt.length - 3000] ^= 1;
    await expect(resume(spoilt)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(resume(Buffer.concat([whole, whole]))).rejects.toMatchObject({ code: "EINVAL" });
    const other = Buffer.concat(await readAll(saving(await device("nic0").setState("STOP_COPY"))));
    await mlx5.reset();
    // Known to be wrong from its first record on.
    const stream = resuming(await mlx5.setState("RESUMING"));
    await expect(stream.write(other)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(mlx5.setState("STOP")).rejects.toMatchObject({ code: "EINVAL" });
  });
});

describe("a saving stream", () => {
  it("has initial data, a temporary end, what changed since, and a real end", async () => {
    const { device } = await bench([VGPU]);
    const vgpu = device("vgpu0");
    await vgpu.enableBusMaster();
    await eventually(async () => (await vgpu.counters()).units > 10);
    const stream = saving(await vgpu.setState("PRE_COPY"));
    const info = await stream.precopyInfo();
    expect(info.initialBytes).toBeGreaterThan(4000);
    expect(info).toMatchObject({ dirtyBytes: 0, reinit: false });
    let read = 0;
    const parts: Uint8Array[] = [];
    while (read < info.initialBytes) {
      const part = await stream.read(3000);
      parts.push(part);
      read += part.byteLength;
    }
    expect(read).toBe(info.initialBytes);
    await expect(stream.read(1)).rejects.toMatchObject({ code: "ENOMSG" });
    await eventually(async () => (await stream.precopyInfo()).dirtyBytes > 0);
    const { initialBytes, dirtyBytes } = await stream.precopyInfo();
    expect(initialBytes).toBe(0);
    parts.push(await stream.read(dirtyBytes));
    await expect(stream.read(1)).rejects.toMatchObject({ code: "ENOMSG" });

    expect(await vgpu.setState("STOP_COPY")).toBeNull();
    await expect(stream.precopyInfo()).rejects.toMatchObject({ code: "EINVAL" });
    const size = await vgpu.dataSize();
    const rest = await readAll(stream);
    expect(rest.reduce((sum, part) => sum + part.byteLength, 0)).toBe(size);
    // Most of the state went in pre-copy.
    expect(size).toBeLessThan(info.initialBytes + 4096);
    expect((await stream.read(10)).byteLength).toBe(0);

    const { lastSequence } = await vgpu.counters();
    await vgpu.setState("RESUMING").then(async (target) => {
      for (const part of [...parts, ...rest]) await resuming(target).write(part);
    });
    await vgpu.setState("STOP");
    expect((await vgpu.counters()).lastSequence).toBe(lastSequence);
  });

  it("says REINIT after a reconfiguration, only to who opted in", async () => {
    for (const optIn of [false, true]) {
      const { device } = await bench([MLX5]);
      const mlx5 = device("mlx0");
      if (optIn) await mlx5.enablePrecopyInfoV2();
      const stream = saving(await mlx5.setState("PRE_COPY"));
      await stream.read((await stream.precopyInfo()).initialBytes);
      while (true) {
        const { initialBytes } = await stream.precopyInfo();
        if (initialBytes === 0) break;
        await stream.read(initialBytes);
      }
      await mlx5.regionWrite(REGION.BAR0, MLX5_QUEUES_REGISTER, Uint8Array.of(9, 0, 0, 0));
      const info = await stream.precopyInfo();
      expect(info.reinit).toBe(optIn);
      expect(optIn ? info.initialBytes : info.dirtyBytes).toBeGreaterThan(9 * 12);
      expect(optIn ? info.dirtyBytes : info.initialBytes).toBe(0);
      await mlx5.setState("STOP_COPY");
      await readAll(stream);
    }
  });

  it("is over when the device leaves the saving states, and when it is closed", async () => {
    const { device } = await bench([MLX5]);
    const mlx5 = device("mlx0");
    const first = saving(await mlx5.setState("PRE_COPY"));
    await mlx5.setState("RUNNING");
    await expect(first.read(1)).rejects.toMatchObject({ code: "ENODEV" });
    const second = saving(await mlx5.setState("STOP_COPY"));
    await second[Symbol.asyncDispose]();
    await expect(second.read(1)).rejects.toMatchObject({ code: "EBADF" });
  });
});

describe("the DMA logging of a device", () => {
  const start = (pageSize: number, ranges: { iova: bigint; length: bigint }[] = [RAM]) => ({ pageSize, ranges });

  it("reports what was written, once", async () => {
    const { device, memory } = await bench([{ ...MLX5, dmaLogging: { pageSizes: [4096, 65536] } }]);
    const mlx5 = device("mlx0");
    expect(await mlx5.startDmaLogging(start(4096))).toBe(4096);
    await mlx5.enableBusMaster();
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
    const { spans, lastSequence } = await mlx5.stamps();
    expect(into.count()).toBe(Math.min(lastSequence, 100));
    into.forEachPageRun((first, pages) => {
      expect(spans.some((s) => first >= s.firstPage && first + pages <= s.firstPage + s.pages)).toBe(true);
    });
    const again = ramBitmap();
    await mlx5.reportDmaLogging({ ...RAM, pageSize: 4096, into: again });
    expect(again.count()).toBe(0);
    expect(stampsIntact(checkStamps(memory, await mlx5.stamps()))).toBe(true);
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
    const { device, holds } = await bench([{ ...MLX5, load: { rate: 5, footprint: FOOTPRINT } }]);
    const mlx5 = device("mlx0");
    await mlx5.startDmaLogging(start(4096));
    await mlx5.enableBusMaster();
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

describe("the DMA logging of an mdev", () => {
  it("reports what is pinned, and what was pinned since the last read", async () => {
    const { device } = await bench([VGPU]);
    const vgpu = device("vgpu0");
    expect(await vgpu.startDmaLogging({ pageSize: 4096, ranges: [RAM] })).toBe(4096);
    await vgpu.enableBusMaster();
    await eventually(async () => (await vgpu.counters()).windowsPinned >= 5);
    await vgpu.setState("STOP");
    const into = ramBitmap();
    await vgpu.reportDmaLogging({ ...RAM, pageSize: 4096, into });
    // Its whole ring of 200 pages was pinned at some time; one window still is.
    expect(into.count()).toBe(200);
    const again = ramBitmap();
    await vgpu.reportDmaLogging({ ...RAM, pageSize: 4096, into: again });
    expect(again.count()).toBeGreaterThan(0);
    expect(again.count()).toBeLessThanOrEqual(64);
  });

  it("gives pins back when their memory is unmapped, without a write afterwards", async () => {
    const { device, iommufd, ioas, memory } = await bench([VGPU]);
    const vgpu = device("vgpu0");
    await vgpu.enableBusMaster();
    await eventually(async () => (await vgpu.counters()).windowsPinned >= 2);
    await iommufd.unmap(ioas, BigInt(MiB), BigInt(7 * MiB));
    const { units } = await vgpu.counters();
    const { spans } = await vgpu.stamps();
    const pages = () =>
      spans.map(({ firstPage, pages: count }) =>
        Buffer.from(memory.arenas[0].u8.slice(firstPage * PAGE_SIZE, (firstPage + count) * PAGE_SIZE)),
      );
    const before = pages();
    await eventually(async () => (await vgpu.counters()).pinFaults > 3);
    expect((await vgpu.counters()).units).toBe(units);
    expect(pages().every((now, index) => now.equals(before[index]))).toBe(true);
    const span = { arena: memory.arenas[0], offset: MiB, length: 7 * MiB };
    await iommufd.map(ioas, span, { iova: BigInt(MiB), readable: true, writeable: true });
    await eventually(async () => (await vgpu.counters()).units > units + 5);
    await vgpu.setState("STOP");
    expect(stampsIntact(checkStamps(memory, await vgpu.stamps()))).toBe(true);
  });

  it("is shared with other mdevs where they attach to an emulated IOMMU", async () => {
    const shared = { ...VGPU, sharedTracker: true, load: { rate: 20, footprint: FOOTPRINT } };
    const { device, iommufd, ioas } = await bench([shared, { ...shared, id: "vgpu1" }]);
    const tracker = await iommufd.allocEmulatedIommu(ioas);
    for (const id of ["vgpu0", "vgpu1"]) {
      await device(id).attach(tracker);
      await device(id).enableBusMaster();
    }
    await iommufd.setDirtyTracking(tracker, true);
    const from = { a: (await device("vgpu0").counters()).units, b: (await device("vgpu1").counters()).units };
    await eventually(async () => (await device("vgpu0").counters()).units > from.a + 110);
    await eventually(async () => (await device("vgpu1").counters()).units > from.b + 110);
    for (const id of ["vgpu0", "vgpu1"]) await device(id).setState("STOP");
    const into = ramBitmap();
    await iommufd.getDirtyBitmap(tracker, { ...RAM, pageSize: 4096, into, clear: true });
    expect(into.count()).toBe(200);
  });
});

describe("P2P DMA", () => {
  const peer = { ...BLK, id: "blk0", p2pTargets: ["vgpu0"] };

  it("reaches the peer's memory where it is allowed, and is refused where it is not", async () => {
    const { device, bar, allowP2p } = await bench([peer, VGPU]);
    const blk = device("blk0");
    await blk.enableBusMaster();
    await eventually(async () => (await blk.counters()).p2pRefused > 2);
    expect(bar("vgpu0").every((byte) => byte === 0)).toBe(true);
    await allowP2p("blk0", "vgpu0", true);
    await eventually(async () => (await blk.counters()).p2pUnits > 2);
    expect(bar("vgpu0").some((byte) => byte !== 0)).toBe(true);
    await allowP2p("blk0", "vgpu0", false);
    const { p2pUnits, p2pRefused, units } = await blk.counters();
    await eventually(async () => (await blk.counters()).p2pRefused > p2pRefused + 2);
    const after = await blk.counters();
    expect(after.p2pUnits).toBe(p2pUnits);
    expect(after.units).toBeGreaterThan(units);
  });

  it("is over when the device has reached a P2P-quiescent state, and goes with its target's state", async () => {
    const { device, bar, allowP2p } = await bench([peer, VGPU]);
    const [blk, vgpu] = [device("blk0"), device("vgpu0")];
    await allowP2p("blk0", "vgpu0", true);
    await blk.enableBusMaster();
    await eventually(async () => (await blk.counters()).p2pUnits > 3);
    for (const each of [vgpu, blk]) await each.setState("RUNNING_P2P");
    const { p2pUnits, units } = await blk.counters();
    const stream = saving(await vgpu.setState("STOP_COPY"));
    const written = bar("vgpu0").slice();
    await eventually(async () => (await blk.counters()).units > units + 30);
    expect((await blk.counters()).p2pUnits).toBe(p2pUnits);
    expect(Buffer.compare(bar("vgpu0"), written)).toBe(0);

    const parts = await readAll(stream);
    await vgpu.reset();
    expect(bar("vgpu0").every((byte) => byte === 0)).toBe(true);
    const target = resuming(await vgpu.setState("RESUMING"));
    for (const part of parts) await target.write(part);
    await vgpu.setState("STOP");
    expect(Buffer.compare(bar("vgpu0"), written)).toBe(0);
  });
});

describe("a device thread", () => {
  it("that dies fails its devices and says so once", async () => {
    const { device, threads, deaths } = await bench([BLK, VGPU]);
    await device("blk0").enableBusMaster();
    await threads.kill(0);
    await eventually(() => deaths.length > 0);
    expect(deaths.map((death) => death.message)).toEqual(["the thread of blk0, vgpu0 has ended"]);
    await expect(device("blk0").setState("STOP")).rejects.toMatchObject({ code: "EIO" });
    expect(await device("blk0").state()).toBe("ERROR");
    await expect(device("vgpu0").counters()).rejects.toMatchObject({ code: "THREAD_ENDED" });
  });

  it("whose disk file is cut short fails that device alone, until it is reset", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dirtmap-test-"));
    const file = join(folder, "disk.img");
    await writeFile(file, Buffer.alloc(1 << 20, 5));
    const { device } = await bench([{ ...BLK, file }, VGPU]);
    await device("blk0").enableBusMaster();
    await eventually(async () => (await device("blk0").counters()).units > 5);
    await truncate(file, 0);
    await eventually(async () => (await device("blk0").counters()).failed === 1);
    await expect(device("blk0").setState("RUNNING_P2P")).rejects.toThrow(/became shorter/);
    expect(await device("blk0").state()).toBe("ERROR");
    await device("vgpu0").setState("STOP");
    await device("blk0").reset();
    expect((await device("blk0").counters()).failed).toBe(0);
    await rm(folder, { recursive: true });
  });

  it("ends with the bench, and what its devices were is refused afterwards", async () => {
    const opened = await openBench(describeMachine([BLK]), { memory: createGuestMemory(8 * MiB) });
    const blk = opened.device("blk0");
    await blk.enableBusMaster();
    await opened[Symbol.asyncDispose]();
    await expect(blk.setState("STOP")).rejects.toMatchObject({ code: "EBADF" });
    expect(opened.deaths).toEqual([]);
  });
});
