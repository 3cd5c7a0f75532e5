import { closeSync, existsSync, readdirSync, writeSync } from "node:fs";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { EventFd } from "../../sys/eventfd.js";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_GET as GET,
  VFIO_DEVICE_FEATURE_SET as SET,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_PCI_IRQ_INDEX,
  vfio_device_feature_dma_logging_range,
  vfio_irq_set,
  vfio_region_info,
} from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  DIRTMAP_HANDOVER,
  DIRTMAP_WRITE_PATH,
  dirtmap_client_memory,
  dirtmap_write_path,
  VFIO_USER_COMMAND,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
  vfio_user_header,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import { closeAll, RawClient } from "../raw-client.test.helper.js";
import type { DmaMode } from "../server/client-memory.js";
import {
  announce,
  dma,
  errnoOf,
  feature,
  mapDma,
  messageMemory,
  moveData,
  raise,
  readable,
  Served,
  setState,
  sharedMemory,
  told,
  unmapDma,
} from "../server/served.test.helper.js";
import { startServer } from "../server/server.js";
import { BAR1_BYTES, TEST_REGISTER } from "../server/test-model.test.helper.js";
import { proxyDevice } from "./proxy.js";

/*
 * A proxy before a server whose control connection nobody uses: to the proxy it is anyone's. What any server does is checked by
 * the conformance suite, by way of a proxy, too.
 */

const PAGE = 4096n;

const start = (dma: DmaMode = "auto") => Served.start({ proxy: { dma } });

function startLog(client: RawClient, pages: bigint): void {
  const { size: head } = vfio_user_dma_logging_control;
  const data = new Uint8Array(head + vfio_device_feature_dma_logging_range.size);
  vfio_user_dma_logging_control.encode({ page_size: PAGE, num_ranges: 1 }, data);
  vfio_device_feature_dma_logging_range.encode({ iova: 0n, length: pages * PAGE }, data, head);
  feature(client, SET | FEATURE.DMA_LOGGING_START, data);
}

/** The pages in the log since the last time. */
function readLog(client: RawClient, pages: bigint): number[] {
  const query = vfio_user_dma_logging_report.encode({ iova: 0n, length: pages * PAGE, page_size: PAGE });
  const reply = feature(client, GET | FEATURE.DMA_LOGGING_REPORT, query, query.byteLength + 8);
  const bits = new DataView(reply.buffer, reply.byteOffset + query.byteLength).getBigUint64(0, true);
  return Array.from({ length: Number(pages) }, (_, page) => page).filter((page) => (bits >> BigInt(page)) & 1n);
}

function choosePath(client: RawClient, path: keyof typeof DIRTMAP_WRITE_PATH): void {
  const values = { argsz: dirtmap_write_path.size, path: DIRTMAP_WRITE_PATH[path] };
  client.call(DIRTMAP_COMMAND.WRITE_PATH, dirtmap_write_path, values);
}

describe.runIf(process.platform === "linux")("a proxy before a vfio-user server", () => {
  let served: Served;
  beforeEach(async () => {
    served = await start();
  });
  afterEach(async () => {
    await served[Symbol.asyncDispose]();
  });

  it("passes on accesses, errors and what wants no reply, each with its client's own id", () => {
    const { client } = served;
    client.writeRegister(0, 8, 0x1234);
    expect(client.readRegister(0, 8)).toBe(0x1234);
    expect(errnoOf(() => client.regionRead(0, 4094, 4))).toBe("EINVAL");
    const data = Buffer.alloc(vfio_user_region_access.size + 4);
    vfio_user_region_access.encode({ offset: 8n, region: 0, count: 4 }, data);
    data.writeUInt32LE(77, vfio_user_region_access.size);
    client.send(VFIO_USER_COMMAND.REGION_WRITE, data, [], { noReply: true });
    expect(client.readRegister(0, 8)).toBe(77);
    const large = new Uint8Array(BAR1_BYTES).map((_, i) => i * 7);
    client.regionWrite(1, 0, large);
    expect(client.regionRead(1, 0, BAR1_BYTES)).toEqual(large);
  });

  it("answers as many accesses as a client sends before it looks for an answer, in their order", () => {
    const { client } = served;
    const request = vfio_user_region_access.encode({ offset: 8n, region: 0, count: 4 });
    const ids = Array.from({ length: 100 }, () => client.send(VFIO_USER_COMMAND.REGION_READ, request));
    for (const id of ids) expect(client.next()).toMatchObject({ id, isReply: true, error: 0 });
  });

  it("agrees on what both can, and gives a client a twin socket of its own", () => {
    served.client[Symbol.dispose]();
    using client = RawClient.connect(served.server.path);
    const { capabilities, fds } = client.version({ max_msg_fds: 4, twin_socket: { supported: true } });
    expect(capabilities).toMatchObject({ max_msg_fds: 16, max_data_xfer_size: 1048576, pgsizes: 4096 });
    expect(fds).toHaveLength(1);
    closeAll(fds);
  });

  it("gives the client a region's descriptor, as the server sent it", () => {
    const argsz = 4096;
    const { payload, fds } = served.client.call("DEVICE_GET_REGION_INFO", vfio_region_info, { argsz, index: 1 });
    expect(vfio_region_info.decode(payload).size).toBe(BigInt(BAR1_BYTES));
    expect(fds).toHaveLength(1);
    closeAll(fds);
  });

  it("has the device reach memory and signal interrupts without asking anyone", () => {
    const { client } = served;
    const { fd, u8 } = sharedMemory(4 * 4096);
    using eventFd = EventFd.create();
    mapDma(client, { address: 0n, size: 4n * PAGE }, [fd]);
    const irq = {
      argsz: vfio_irq_set.size,
      flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
      index: VFIO_PCI_IRQ_INDEX.MSIX,
      count: 1,
    };
    client.call("DEVICE_SET_IRQS", vfio_irq_set, irq, { fds: [eventFd.fd] });
    const { passed } = told(client).messages as unknown as { passed: number };
    expect(dma(client, "WRITE", { address: PAGE, value: 7 })).toBe("done");
    expect(u8[4096]).toBe(7);
    raise(client, VFIO_PCI_IRQ_INDEX.MSIX, 0);
    expect(readable(eventFd.fd, 5000)).toBe(true);
    // Nothing but the accesses to registers has passed.
    expect((told(client).messages as unknown as { passed: number }).passed - passed).toBeLessThan(2000);
    expect(told(client).dma).toMatchObject({ writes: 0, regions: 1 });
    closeSync(fd);
  });

  it("keeps no descriptor of what it has passed on", () => {
    const { client } = served;
    const { fd } = sharedMemory(4 * 4096);
    const open = () => {
      // What was sent on is closed after it was sent, on another thread: by its next answer it is.
      client.readRegister(0, 8);
      return readdirSync("/proc/self/fd").length;
    };
    mapDma(client, { address: 0n, size: PAGE }, [fd]);
    unmapDma(client, 0n, PAGE);
    const before = open();
    for (let i = 0; i < 20; i++) {
      mapDma(client, { address: 0n, size: PAGE }, [fd]);
      expect(errnoOf(() => mapDma(client, { address: 0n, size: PAGE }, [fd]))).toBe("EEXIST");
      unmapDma(client, 0n, PAGE);
      closeAll(client.call("DEVICE_GET_REGION_INFO", vfio_region_info, { argsz: 4096, index: 1 }).fds);
    }
    expect(open()).toBe(before);
    closeSync(fd);
  });

  it("takes the memory and interrupts of a client that leaves away from the server, which keeps the device's state", () => {
    const { fd } = sharedMemory(4096);
    mapDma(served.client, { address: 0n, size: PAGE }, [fd]);
    served.client.writeRegister(0, 8, 5);
    const next = served.reconnect();
    expect(next.readRegister(0, 8)).toBe(5);
    expect(dma(next, "WRITE", { address: 0n })).toBe("not-mapped");
    mapDma(next, { address: 0n, size: PAGE }, [fd]);
    expect(dma(next, "WRITE", { address: 0n })).toBe("done");
    closeSync(fd);
  });

  it("has one client: a second is refused, the first is not disturbed", async () => {
    using second = RawClient.connect(served.server.path);
    expect(() => second.version()).toThrow();
    await served.logged(/is refused: the device has a client/);
    expect(served.client.readRegister(0, 8)).toBe(0);
  });

  it("tells both of the server's end, and serves the next client once another server is there", async () => {
    using control = served.control();
    await served.behind.close();
    expect(() => served.client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    await served.logged(/has closed the connection; its client is disconnected/);
    expect(told(control)).toMatchObject({ failure: "its server is gone", state: null });
    expect(errnoOf(() => setState(control, "STOP"))).toBe("ENOTCONN");
    using early = RawClient.connect(served.server.path);
    expect(() => early.version()).toThrow();
    await using _again = await startServer(
      new URL("../server/test-model-thread.test.helper.js", import.meta.url),
      { model: "test", options: {}, id: "test", dma: "auto", busy: false },
      { path: served.behind.path, log: () => {} },
    );
    // It looks for one twice a second, and says so when it has one.
    while (served.lines.filter((line) => line.startsWith("'test' is at")).length < 2) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(served.reconnect().readRegister(0, 8)).toBe(0);
    expect(told(control)).toMatchObject({ failure: null, state: "RUNNING" });
  });

  it("can't be started before a server that is not there, and leaves no socket", async () => {
    const path = `${served.server.path}-2`;
    await expect(proxyDevice({ server: `${path}-nobody`, path })).rejects.toMatchObject({ code: "ENOENT" });
    expect(existsSync(path)).toBe(false);
    // The server has a client: the first proxy.
    await expect(proxyDevice({ server: served.behind.path, path })).rejects.toMatchObject({
      code: "ECONNRESET",
      remedy: expect.stringContaining("have another client"),
    });
  });

  it("closes the connection of a client whose messages can't be, and goes on", () => {
    for (const header of [
      { msg_size: 8 },
      { msg_size: 2 ** 31 },
      { msg_size: 16, flags: 7 },
      { msg_size: 16, flags: VFIO_USER_F_TYPE_REPLY },
    ]) {
      const client = served.reconnect();
      writeSync(client.socket.fd, vfio_user_header.encode({ cmd: VFIO_USER_COMMAND.DEVICE_RESET, ...header }));
      expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    }
    expect(served.reconnect().readRegister(0, 8)).toBe(0);
  });

  describe("over its control connection", () => {
    it("tells what the server can, and how its writes can be tracked", () => {
      using control = served.control();
      expect(told(control)).toMatchObject({
        id: "test",
        model: "vfio-user",
        state: "RUNNING",
        failure: null,
        tracking: { tracksInternally: true },
        dmaLogging: { pageSizes: [4096] },
        writePath: { path: "direct", chosenBy: null, possible: ["direct"] },
        proxy: { server: served.behind.path, migration: { stopCopy: true, p2p: true, preCopy: true }, log: true },
      });
      expect(errnoOf(() => choosePath(control, "messages"))).toBe("EOPNOTSUPP");
      expect(errnoOf(() => control.readRegister(0, 8))).toBe("EPERM");
    });

    it("moves the device for one connection at a time, and lets it run again when that one dies", async () => {
      using other = served.control();
      const mover = served.control();
      setState(mover, "STOP_COPY");
      expect(told(other)).toMatchObject({ state: "STOP_COPY", migration: { connected: true } });
      expect(errnoOf(() => setState(other, "RUNNING"))).toBe("EBUSY");
      mover[Symbol.dispose]();
      await served.logged(/has gone and left 'test' in STOP_COPY: it runs again/);
      expect(told(other)).toMatchObject({ state: "RUNNING", migration: null });
    });

    it("leaves a device that may have been handed over to an operator", async () => {
      using other = served.control();
      const mover = served.control();
      setState(mover, "STOP_COPY");
      announce(mover, DIRTMAP_HANDOVER.committing, "1f0c93ab");
      mover[Symbol.dispose]();
      await served.logged(/may have handed it over: .* `dirtmap device resume/);
      expect(told(other)).toMatchObject({ state: "STOP_COPY", migration: { connected: false, stays: "undecided" } });
      setState(other, "RUNNING");
      expect(told(other)).toMatchObject({ state: "RUNNING", migration: null });
    });

    it("resets what holds half of another's state when its loader dies", async () => {
      await using source = await start();
      source.client.writeRegister(0, 8, 9);
      using from = source.control();
      const to = served.control();
      setState(from, "STOP_COPY");
      setState(to, "RESUMING");
      moveData(from, to);
      setState(to, "STOP");
      expect(served.client.readRegister(0, 8)).toBe(9);
      to[Symbol.dispose]();
      await served.logged(/it is reset, since its state is another's/);
      expect(served.client.readRegister(0, 8)).toBe(0);
    });

    it("waits for a state with --incoming until one has come and runs", async () => {
      await using source = await start();
      source.client.writeRegister(0, 8, 9);
      await using target = await Served.start({ proxy: { incoming: true } });
      using from = source.control();
      using to = target.control();
      expect(told(to).waitsForState).toBe(true);
      setState(from, "STOP_COPY");
      setState(to, "RESUMING");
      moveData(from, to);
      setState(to, "RUNNING");
      expect(target.client.readRegister(0, 8)).toBe(9);
      expect(told(to).waitsForState).toBe(false);
    });

    it("passes on the server's log, whose reader is one connection, and adds what was unmapped", () => {
      const { client } = served;
      const { fd } = sharedMemory(8 * 4096);
      mapDma(client, { address: 0n, size: 4n * PAGE }, [fd]);
      mapDma(client, { address: 4n * PAGE, size: 2n * PAGE }, [fd]);
      using control = served.control();
      using other = served.control();
      startLog(control, 6n);
      expect(errnoOf(() => startLog(other, 6n))).toBe("EINVAL");
      expect(errnoOf(() => readLog(other, 6n))).toBe("EBUSY");
      expect(dma(client, "WRITE", { address: 2n * PAGE })).toBe("done");
      expect(readLog(control, 6n)).toEqual([2]);
      expect(readLog(control, 6n)).toEqual([]);
      unmapDma(client, 4n * PAGE, 2n * PAGE);
      expect(readLog(control, 6n)).toEqual([4, 5]);
      closeSync(fd);
    });

    it("has the client write memory over itself while the device is stopped", () => {
      const { client } = served;
      const { fd, u8 } = sharedMemory(2 * 4096);
      const { memory, seen, answer } = messageMemory(2 * 4096, 0n);
      mapDma(client, { address: 0n, size: 2n * PAGE }, [fd]);
      closeSync(fd);
      u8.fill(3);
      using control = served.control();
      const rewrite = () =>
        control.send(DIRTMAP_COMMAND.CLIENT_REWRITE, dirtmap_client_memory.encode({ address: PAGE, count: PAGE }));
      rewrite();
      expect(control.next().error).not.toBe(0);
      setState(control, "STOP");
      const id = rewrite();
      answer(client.next(), client);
      expect(control.next()).toMatchObject({ id, error: 0 });
      expect(seen).toEqual([{ command: VFIO_USER_COMMAND.DMA_WRITE, address: PAGE, count: 4096 }]);
      expect(memory[4096]).toBe(3);
    });
  });
});

describe.runIf(process.platform === "linux")("a proxy that gives the server no memory (--dma messages)", () => {
  let served: Served;
  let u8: Uint8Array;
  let seen: ReturnType<typeof messageMemory>["seen"];
  beforeAll(async () => {
    served = await start("messages");
    const memory = sharedMemory(8 * 4096);
    u8 = memory.u8;
    mapDma(served.client, { address: 0n, size: 6n * PAGE }, [memory.fd]);
    closeSync(memory.fd);
    const asked = messageMemory(8 * 4096, 0n);
    seen = asked.seen;
    served.client.onCommand = asked.answer;
    mapDma(served.client, { address: 6n * PAGE, size: PAGE });
  });
  afterAll(async () => {
    await served[Symbol.asyncDispose]();
  });

  it("reads and writes the client's memory for it, and asks the client for what that did not share", () => {
    const { client } = served;
    expect(dma(client, "WRITE", { address: PAGE + 16n, value: 0x5a, bytes: 100 })).toBe("done");
    expect(u8.subarray(4096 + 15, 4096 + 18)).toEqual(Uint8Array.of(0, 0x5a, 0x5a));
    u8.set([1, 2, 3, 4], 0);
    expect(dma(client, "READ", { address: 0n })).toBe("done");
    expect(client.readRegister(0, TEST_REGISTER.VALUE)).toBe(0x04030201);
    expect(dma(client, "WRITE", { address: 7n * PAGE })).toBe("not-mapped");
    expect(seen).toEqual([]);
    expect(dma(client, "WRITE", { address: 6n * PAGE })).toBe("done");
    expect(seen.splice(0)).toHaveLength(1);
    expect(told(client).dma).toMatchObject({ writes: 2, reads: 1 });
  });

  it("logs all that the device writes, whoever stores it", () => {
    const { client } = served;
    using control = served.control();
    expect(told(control)).toMatchObject({
      dmaLogging: { addressWidth: 52 },
      writePath: { possible: ["direct", "messages"] },
    });
    startLog(control, 7n);
    for (const page of [3n, 6n]) expect(dma(client, "WRITE", { address: page * PAGE })).toBe("done");
    expect(readLog(control, 7n)).toEqual([3, 6]);
    expect(readLog(control, 7n)).toEqual([]);
    seen.splice(0);
  });

  it("has the client do each write while a control connection wants that, and no longer", async () => {
    const { client } = served;
    const control = served.control();
    choosePath(control, "messages");
    expect(dma(client, "WRITE", { address: 2n * PAGE, value: 1 })).toBe("done");
    expect(seen.splice(0)).toEqual([{ command: VFIO_USER_COMMAND.DMA_WRITE, address: 2n * PAGE, count: 4 }]);
    expect(dma(client, "READ", { address: 0n })).toBe("done");
    expect(seen).toEqual([]);
    choosePath(control, "direct");
    expect(dma(client, "WRITE", { address: 2n * PAGE, value: 1 })).toBe("done");
    expect(seen).toEqual([]);
    control[Symbol.dispose]();
  });

  it("closes the connection of a client that answers a DMA wrongly; the server and the device stay", async () => {
    await using other = await start("messages");
    mapDma(other.client, { address: 0n, size: PAGE });
    other.client.writeRegister(0, 8, 5);
    other.client.onCommand = (message, { socket }) => {
      const wrong = message.payload.slice(0, vfio_user_dma_access.size);
      wrong[0] ^= 1;
      socket.sendReply(message, wrong);
    };
    expect(() => dma(other.client, "WRITE", { address: 0n })).toThrow();
    await other.logged(/its answer to a DMA can't be: its address is not the request's/);
    expect(other.reconnect().readRegister(0, 8)).toBe(5);
  });
});
