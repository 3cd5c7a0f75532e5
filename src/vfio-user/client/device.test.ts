import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { enableBusMaster } from "../../devices/workload.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { DmaMemory } from "../../memory/dma-memory.js";
import { EventFd } from "../../sys/eventfd.js";
import { VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import type { DmaMode } from "../server/client-memory.js";
import { readable, socketDirectory } from "../server/served.test.helper.js";
import { type DeviceServer, startServer } from "../server/server.js";
import { TEST_COMMAND, TEST_REGISTER } from "../server/test-model.test.helper.js";
import type { VfioUserDevice } from "./device.js";
import { VfioUserHost } from "./host.js";

const IOVA = BigInt(MiB);
const RANGE = { iova: IOVA, length: BigInt(MiB) };
const PAGE = BigInt(PAGE_SIZE);

let directory: ReturnType<typeof socketDirectory>;
let server: DeviceServer;
let host: VfioUserHost;

beforeEach(async () => {
  directory = socketDirectory();
  server = await startServer(
    new URL("../server/test-model-thread.test.helper.js", import.meta.url),
    { model: "test", options: {}, id: "test", dma: "auto", busy: false },
    { path: `${directory.path}/Test Device`, log: () => {} },
  );
});
afterEach(async () => {
  await host[Symbol.asyncDispose]();
  await server.close();
  directory[Symbol.dispose]();
});

/** The device, with a MiB of memory mapped for it. */
async function attached(dma: DmaMode, memory: Pick<DmaMemory, "arena" | "offset">) {
  host = new VfioUserHost([{ path: server.path, id: "t", dma }]);
  const iommufd = await host.openIommufd();
  const ioas = await iommufd.allocIoas();
  const span = { arena: memory.arena, offset: memory.offset, length: MiB };
  await iommufd.map(ioas, span, { iova: IOVA, readable: true, writeable: true });
  const device = await host.openDevice("t");
  const deviceId = await device.bind(iommufd);
  await device.attach(ioas);
  await enableBusMaster(device);
  return { iommufd, ioas, device, deviceId };
}

/** Has the device write a 32-bit value; returns when it has, or could not. */
async function write(device: VfioUserDevice, address: bigint, value: number): Promise<number> {
  const registers = Buffer.alloc(16);
  registers.writeBigUInt64LE(address, 0);
  registers.writeUInt32LE(value, TEST_REGISTER.VALUE - TEST_REGISTER.ADDRESS);
  registers.writeUInt32LE(4, TEST_REGISTER.BYTES - TEST_REGISTER.ADDRESS);
  await device.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
  const command = Buffer.alloc(4);
  command.writeUInt32LE(TEST_COMMAND.WRITE);
  await device.regionWrite(0, TEST_REGISTER.COMMAND, command);
  for (let tries = 0; tries < 1000; tries++) {
    const result = Buffer.from(await device.regionRead(0, TEST_REGISTER.RESULT, 4)).readUInt32LE();
    if (result !== 0) return result;
  }
  throw new Error("the device did not do it");
}

function setBits(bitmap: DirtyBitmap): number[] {
  const bits: number[] = [];
  bitmap.forEachRun((first, count) => {
    for (let i = 0; i < count; i++) bits.push(first + i);
  });
  return bits;
}

describe("a device behind a socket", () => {
  it("writes into memory that it shares by a descriptor, and its log tells where", async () => {
    using memory = DmaMemory.allocate(MiB, { kind: "memfd" });
    const { device, iommufd, deviceId } = await attached("auto", memory);
    expect((await iommufd.hwInfo(deviceId)).dirtyTracking).toBe(false);
    await device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [RANGE] });
    await write(device, IOVA + 3n * PAGE, 0x12);
    expect(memory.bytes[3 * PAGE_SIZE]).toBe(0x12);
    const into = new DirtyBitmap({ ...RANGE, granule: PAGE_SIZE });
    await device.reportDmaLogging({ ...RANGE, pageSize: PAGE_SIZE, into });
    expect(setBits(into)).toEqual([3]);
    await host[Symbol.asyncDispose]();
  });

  it("writes by messages into memory without a descriptor", async () => {
    const arena = createArena(MiB);
    const { device } = await attached("auto", { arena, offset: 0 });
    await write(device, IOVA + 2n * PAGE, 0x99);
    expect(arena.u8[2 * PAGE_SIZE]).toBe(0x99);
  });

  it("whose DMA goes by messages is tracked by who serves them: what it wrote is dirty in its HWPT, once", async () => {
    using memory = DmaMemory.allocate(MiB, { kind: "memfd" });
    const { device, iommufd, deviceId, ioas } = await attached("messages", memory);
    expect((await iommufd.hwInfo(deviceId)).dirtyTracking).toBe(true);
    const hwpt = await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: true });
    await device.attach(hwpt);
    await write(device, IOVA, 1);
    await iommufd.setDirtyTracking(hwpt, true);
    await write(device, IOVA + 5n * PAGE, 2);
    const read = async () => {
      const into = new DirtyBitmap({ ...RANGE, granule: PAGE_SIZE });
      await iommufd.getDirtyBitmap(hwpt, { ...RANGE, pageSize: PAGE_SIZE, into, clear: true });
      return setBits(into);
    };
    expect([await read(), await read()]).toEqual([[5], []]);
    expect(memory.bytes[5 * PAGE_SIZE]).toBe(2);
    await host[Symbol.asyncDispose]();
  });

  it.each(["auto", "messages"] as const)("reaches nothing that is unmapped, with DMA by %s", async (dma) => {
    using memory = DmaMemory.allocate(MiB, { kind: "memfd" });
    const { device, iommufd, ioas } = await attached(dma, memory);
    const done = await write(device, IOVA, 7);
    await iommufd.unmap(ioas, RANGE.iova, RANGE.length);
    expect(await write(device, IOVA, 8)).not.toBe(done);
    expect(memory.bytes[0]).toBe(7);
  });

  it("signals the eventfds that it is given", async () => {
    host = new VfioUserHost([{ path: server.path, id: "t" }]);
    const device = await host.openDevice("t");
    using eventfd = EventFd.create();
    const { index } =
      device.irqs.find(({ index: candidate }) => candidate === VFIO_PCI_IRQ_INDEX.REQ) ?? device.irqs[0];
    await device.setIrqEventFds(index, 0, [eventfd.fd]);
    expect(readable(eventfd.fd)).toBe(false);
    const registers = Buffer.alloc(12);
    registers.writeBigUInt64LE(BigInt(index) << 12n, 0);
    await device.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
    const command = Buffer.alloc(4);
    command.writeUInt32LE(TEST_COMMAND.RAISE);
    await device.regionWrite(0, TEST_REGISTER.COMMAND, command);
    expect(readable(eventfd.fd, 2000)).toBe(true);
  });

  it("refuses accesses outside its regions with EINVAL, and tells which it has", async () => {
    host = new VfioUserHost([{ path: server.path, id: "t" }]);
    const device = await host.openDevice("t");
    await expect(device.regionRead(0, 2 ** 40, 4)).rejects.toMatchObject({
      code: "EINVAL",
      remedy: expect.stringContaining("config"),
    });
  });

  it("that refuses a state says why, in its server's words, until it is reset", async () => {
    host = new VfioUserHost([{ path: server.path, id: "t" }]);
    const device = await host.openDevice("t");
    const problem = async () => (await device.serverCounters())?.problem;
    expect(await problem()).toBeNull();
    const stream = await device.setState("RESUMING");
    if (stream?.direction !== "resuming") throw new Error("no stream to resume from");
    const why = "the stream doesn't begin with the device's identity";
    await expect(stream.write(new Uint8Array(64))).rejects.toMatchObject({
      code: "EINVAL",
      cause: { message: expect.stringContaining(why) },
    });
    expect(await problem()).toContain(why);
    await expect(device.setState("STOP")).rejects.toMatchObject({
      code: "EINVAL",
      message: expect.stringMatching(`it is in ERROR: .*${why}`),
      cause: { message: expect.stringContaining(why) },
    });
    await device.reset();
    expect(await problem()).toBeNull();
  });

  it("tells what a guest can see of it", async () => {
    host = new VfioUserHost([{ path: server.path, id: "t" }]);
    const device = await host.openDevice("t");
    const shape = await device.shape();
    expect(shape).toMatchObject({ model: "test", stateVersion: 1, config: expect.stringMatching(/^[0-9a-f]{512}$/) });
    expect(shape.regions.map(({ index, bytes }) => ({ index, bytes }))).toEqual(
      device.regions.map(({ index, bytes }) => ({ index, bytes })),
    );
  });

  it("whose server ends fails every call with one error, and can still be closed", async () => {
    using memory = DmaMemory.allocate(MiB, { kind: "memfd" });
    const { device, iommufd, ioas } = await attached("auto", memory);
    await server.close();
    await expect(device.state()).rejects.toMatchObject({ code: "ECONNRESET" });
    await expect(device.reset()).rejects.toMatchObject({ code: "ECONNRESET" });
    expect(await iommufd.unmap(ioas, RANGE.iova, RANGE.length)).toBe(RANGE.length);
    await device[Symbol.asyncDispose]();
  });
});

describe("a host of devices behind sockets", () => {
  it("makes ids of the sockets' names, and asks servers for their models", async () => {
    host = new VfioUserHost([{ path: server.path }, { path: `${directory.path}/nobody` }]);
    expect(await host.devices()).toMatchObject([
      { id: "test-device", kind: "pci" },
      { id: "nobody", model: "vfio-user" },
    ]);
  });

  it("opens a device once at a time, and none that it does not know: EBUSY, ENODEV", async () => {
    host = new VfioUserHost([{ path: server.path, id: "t" }]);
    const device = await host.openDevice("t");
    await expect(host.openDevice("t")).rejects.toMatchObject({ code: "EBUSY" });
    await expect(host.openDevice("u")).rejects.toMatchObject({ code: "ENODEV" });
    await device[Symbol.asyncDispose]();
    await host.openDevice("t");
  });

  it("refuses a socket that is named twice", () => {
    host = new VfioUserHost([]);
    expect(() => new VfioUserHost([{ path: server.path }, { path: server.path }])).toThrow(/named twice/);
  });

  it("reaches a device that has a client already over its control socket, and leaves it as it is", async () => {
    host = new VfioUserHost([{ path: server.path, id: "t" }]);
    const client = await host.openDevice("t");
    await enableBusMaster(client);
    await using other = new VfioUserHost([{ path: server.path, id: "t" }]);
    await expect(other.openDevice("t")).rejects.toMatchObject({ code: "ECONNRESET" });
    const control = await other.openControl("t");
    expect(await control.serverCounters()).toMatchObject({ busMaster: true });
    expect(await control.state()).toBe("RUNNING");
    const iommufd = await other.openIommufd();
    await control.bind(iommufd);
    await expect(control.attach(await iommufd.allocIoas())).rejects.toMatchObject({ code: "EPERM" });
  });
});
