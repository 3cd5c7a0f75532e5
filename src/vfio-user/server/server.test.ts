import { closeSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { PCI_COMMAND, PCI_COMMAND_MASTER, REGION, REGISTER } from "../../devices/pci-model.js";
import { SERVABLE_MODELS } from "../../devices/servable-models.js";
import { checkStamps, type StampTrail, stampsIntact } from "../../devices/stamp.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import { EventFd } from "../../sys/eventfd.js";
import { listenAt } from "../../sys/unix-socket.js";
import { VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, vfio_irq_set } from "../../uapi/vfio.js";
import { DIRTMAP_COMMAND, VFIO_USER_COMMAND, vfio_user_region_access } from "../../uapi/vfio-user.js";
import { controlPath } from "../control-path.js";
import { RawClient } from "../raw-client.test.helper.js";
import { dma, mapDma, readable, Served, sharedMemory, socketDirectory } from "./served.test.helper.js";
import { type DeviceServer, type ServeDeviceOptions, serveDevice } from "./server.js";
import { TEST_COMMAND, TEST_REGISTER } from "./test-model.test.helper.js";

const PAGE = 4096;

describe.runIf(process.platform === "linux")("serveDevice", () => {
  let directory: ReturnType<typeof socketDirectory>;
  let path: string;
  const servers: DeviceServer[] = [];
  beforeEach(() => {
    directory = socketDirectory();
    path = join(directory.path, "device");
  });
  afterEach(async () => {
    for (const server of servers.splice(0)) await server.close();
    directory[Symbol.dispose]();
  });

  async function serve(options: Partial<ServeDeviceOptions> = {}): Promise<DeviceServer> {
    const server = await serveDevice({ model: "mlx5", path, ...options });
    servers.push(server);
    return server;
  }

  async function refused(options: Partial<ServeDeviceOptions>): Promise<{ code: string; name: string }> {
    const error = await serve(options).catch((reason: unknown) => reason);
    return error as { code: string; name: string };
  }

  function counters(client: RawClient): {
    device: Record<string, number>;
    dma: Record<string, number>;
    trail: StampTrail;
  } {
    const request = new Uint8Array(8);
    new DataView(request.buffer).setUint32(0, 65536, true);
    const { payload } = client.request(DIRTMAP_COMMAND.COUNTERS, request);
    return JSON.parse(Buffer.from(payload.subarray(8, -1)).toString("utf8"));
  }

  it.each(["mlx5", "nic", "blk", "vgpu"])(
    "gives %s the buffers that its driver programs: its stamped DMA lands in the client's memory, and only there",
    async (model) => {
      await serve({ model, options: { rate: 20, incarnation: 7 }, id: `${model}0` });
      using client = RawClient.open(path);
      const { fd, u8 } = sharedMemory(64 * PAGE);
      mapDma(client, { address: 0x40000n, size: BigInt(64 * PAGE) }, [fd]);
      closeSync(fd);
      const table = new BigUint64Array([0x50000n, BigInt(8 * PAGE), 0x40000n, BigInt(8 * PAGE)]);
      client.regionWrite(REGION.BAR0, REGISTER.BUFFER_TABLE, new Uint8Array(table.buffer));
      client.writeRegister(REGION.BAR0, REGISTER.BUFFERS, 2);
      expect(client.readRegister(REGION.BAR0, REGISTER.BUFFERS)).toBe(2);
      // A table that can't be changes nothing.
      client.writeRegister(REGION.BAR0, REGISTER.BUFFERS, 3);
      expect(client.readRegister(REGION.BAR0, REGISTER.BUFFERS)).toBe(2);
      using irq = EventFd.create();
      const index = model === "vgpu" ? 1 : 2;
      client.call(
        "DEVICE_SET_IRQS",
        vfio_irq_set,
        { argsz: 20, flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, count: 1 },
        { fds: [irq.fd] },
      );
      client.writeRegister(REGION.CONFIG, PCI_COMMAND, PCI_COMMAND_MASTER);
      for (const until = performance.now() + 20_000; counters(client).trail.lastSequence < 40; ) {
        if (performance.now() > until) throw new Error(`no DMA: ${JSON.stringify(counters(client))}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect(readable(irq.fd, 5000)).toBe(true);
      client.writeRegister(REGION.CONFIG, PCI_COMMAND, 0);
      const { trail, dma } = counters(client);
      const memory = {
        regions: [{ firstPage: 0x40, pages: 64, arena: 0, arenaPage: 0 }],
        arenas: [{ u8 }],
      } as unknown as GuestMemory;
      const problems = checkStamps(memory, trail);
      expect(problems).toMatchObject({ writer: `${model}0`, checked: 16, examples: [] });
      expect(stampsIntact(problems)).toBe(true);
      expect(dma.writes).toBe(trail.lastSequence);
      expect(u8.subarray(8 * PAGE, 16 * PAGE).every((byte) => byte === 0)).toBe(true);
      expect(u8.subarray(24 * PAGE).every((byte) => byte === 0)).toBe(true);
    },
  );

  it("has models whose memory clients may map", async () => {
    await serve({ model: "vgpu", options: { vram: 65536 } });
    using client = RawClient.open(path);
    client.regionWrite(REGION.BAR2, 65535, Uint8Array.of(9));
    expect(client.regionRead(REGION.BAR2, 65535, 1)[0]).toBe(9);
    expect((await refused({ model: "vgpu", options: { vram: 5000 }, path: `${path}2` })).code).toBe("BAD_OPTION");
  });

  it("refuses models and options that there are not, before anything is started", async () => {
    expect(await refused({ model: "nix" })).toMatchObject({ name: "UsageError", code: "NO_SUCH_MODEL" });
    expect(await refused({ options: { rat: 1 } })).toMatchObject({ name: "UsageError", code: "BAD_OPTION" });
    expect(await refused({ options: { rate: -1 } })).toMatchObject({ code: "BAD_OPTION" });
    expect(await refused({ options: { rate: "fast" } })).toMatchObject({ code: "BAD_OPTION" });
    expect(existsSync(path)).toBe(false);
    for (const { name, options } of SERVABLE_MODELS) {
      expect(new Set(options.map((option) => option.name)).size, name).toBe(options.length);
    }
  });

  it("tells when a model can't be started, and leaves nothing behind", async () => {
    expect(await refused({ model: "blk", options: { file: join(directory.path, "missing") } })).toMatchObject({
      name: "UsageError",
      code: "BAD_DISK_FILE",
    });
    expect(existsSync(path)).toBe(false);
    expect(existsSync(controlPath(path))).toBe(false);
  });

  it("listens at paths where nothing is, in directories that there are", async () => {
    writeFileSync(path, "precious");
    expect(await refused({})).toMatchObject({ name: "UsageError", code: "SOCKET_IN_USE" });
    expect(await refused({ path: join(directory.path, "no", "device") })).toMatchObject({ code: "BAD_SOCKET_PATH" });
    expect(await refused({ path: join(path, "device") })).toMatchObject({ code: "BAD_SOCKET_PATH" });
    expect(await refused({ path: "x".repeat(108) })).toMatchObject({ code: "BAD_SOCKET_PATH" });
    const other = join(directory.path, "other");
    mkdirSync(controlPath(other));
    expect(await refused({ path: other })).toMatchObject({ code: "SOCKET_IN_USE" });
    expect(existsSync(other)).toBe(false);
    await serve({ path: join(directory.path, "served") });
    expect(await refused({ path: join(directory.path, "served") })).toMatchObject({ code: "SOCKET_IN_USE" });
    using client = RawClient.open(join(directory.path, "served"));
    expect(client.readRegister(REGION.BAR0, REGISTER.SCRATCH)).toBe(0);
  });

  it("takes over a socket that a killed server has left behind", async () => {
    closeSync(listenAt(path));
    expect(existsSync(path)).toBe(true);
    const lines: string[] = [];
    await serve({ log: (line) => lines.push(line) });
    expect(lines.join()).toContain("taken over");
    using client = RawClient.open(path);
    expect(client.readRegister(REGION.BAR0, REGISTER.SCRATCH)).toBe(0);
  });

  it("says once what moves a guest, when a VMM comes that is no Dirtmap; not where a state is waited for", async () => {
    const about = (lines: readonly string[]) => lines.filter((line) => line.includes("dirtmap migrate --qmp"));
    await using served = await Served.start({ capabilities: {} });
    expect(await served.logged(/dirtmap migrate --qmp/)).toContain("client 1 uses 'test'");
    served.reconnect({}).readRegister(0, TEST_REGISTER.RESULT);
    await using waiting = await Served.start({ capabilities: {}, incoming: true });
    await using ours = await Served.start();
    for (const { client } of [waiting, ours]) client.readRegister(0, TEST_REGISTER.RESULT);
    expect([served, waiting, ours].map(({ lines }) => about(lines).length)).toEqual([1, 0, 0]);
  });

  it("disconnects its clients and removes its sockets when it is closed, also twice", async () => {
    const server = await serve();
    using client = RawClient.open(path);
    using control = RawClient.open(controlPath(path));
    await server.close();
    await server.close();
    await server.ended;
    expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    expect(() => control.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    expect(existsSync(path) || existsSync(controlPath(path))).toBe(false);
  });

  it("tells when its thread dies, and leaves no socket behind", async () => {
    await using served = await Served.start();
    const { client, server } = served;
    const data = Buffer.alloc(vfio_user_region_access.size + 4);
    vfio_user_region_access.encode({ offset: BigInt(TEST_REGISTER.COMMAND), region: 0, count: 4 }, data);
    data.writeUInt32LE(TEST_COMMAND.EXIT, vfio_user_region_access.size);
    client.send(VFIO_USER_COMMAND.REGION_WRITE, data);
    await expect(server.ended).rejects.toMatchObject({ code: "THREAD_ENDED" });
    expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    expect(existsSync(server.path) || existsSync(server.controlPath)).toBe(false);
  });

  it("polls without sleeping where it is asked to, and serves the control socket all the same", async () => {
    await using served = await Served.start({ busy: true });
    const { client } = served;
    client.writeRegister(0, 0x100, 5);
    expect(client.readRegister(0, 0x100)).toBe(5);
    const { fd, u8 } = sharedMemory(PAGE);
    mapDma(client, { address: 0n, size: BigInt(PAGE) }, [fd]);
    closeSync(fd);
    // The device's next slice of work would be due in a second: what its driver writes gives it one at once.
    const before = performance.now();
    for (let value = 1; value <= 20; value++) {
      expect(dma(client, "WRITE", { address: 0n, value })).toBe("done");
      expect(u8[0]).toBe(value);
    }
    expect(performance.now() - before).toBeLessThan(10_000);
    using control = served.control();
    const request = new Uint8Array(8);
    new DataView(request.buffer).setUint32(0, 65536, true);
    expect(control.request(DIRTMAP_COMMAND.COUNTERS, request).payload.byteLength).toBeGreaterThan(8);
    const again = served.reconnect();
    expect(again.readRegister(0, 0x100)).toBe(5);
  });
});
