import { closeSync, ftruncateSync, openSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { CC, CSTS, DOORBELLS, REGISTER } from "../../devices/nvme/spec.js";
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_SET,
  vfio_irq_info,
} from "../../uapi/vfio.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
  vfio_user_dma_map,
} from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import { RawClient } from "../raw-client.test.helper.js";
import { errnoOf, feature, mapDma, Served, socketDirectory, unmapDma } from "./served.test.helper.js";
import { serveDevice } from "./server.js";
import { TEST_FAULTS, TEST_REGISTER } from "./test-model.test.helper.js";

/*
 * QEMU serves DMA in its main loop, for which it needs the lock that a vCPU holds while it waits for a register: it answers
 * no DMA before its own command is answered.
 */

const PAGE = 4096n;

/** Has the test model write memory, and the client not answer; returns the device's command. */
function beginDma(client: RawClient): Message {
  mapDma(client, { address: 0n, size: PAGE });
  const registers = Buffer.alloc(16);
  registers.writeUInt32LE(4, 12);
  client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
  client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
  const message = client.next();
  expect(message).toMatchObject({ command: VFIO_USER_COMMAND.DMA_WRITE, isReply: false });
  return { ...message, payload: message.payload.slice() };
}

function answer(client: RawClient, { id, command, payload }: Message): void {
  const head = payload.slice(0, vfio_user_dma_access.size);
  client.socket.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY }, head);
}

describe.runIf(process.platform === "linux")("a client that answers no DMA while it waits", () => {
  it("is told about interrupts at once", async () => {
    await using served = await Served.start();
    const { client } = served;
    const message = beginDma(client);
    const begun = performance.now();
    const { payload } = client.call("DEVICE_GET_IRQ_INFO", vfio_irq_info, { argsz: vfio_irq_info.size, index: 2 });
    expect(vfio_irq_info.decode(payload).count).toBe(32);
    expect(performance.now() - begun).toBeLessThan(1500);
    answer(client, message);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("done"));
  });

  it("may give the device more memory, and have the answer at once", async () => {
    await using served = await Served.start();
    const { client } = served;
    const message = beginDma(client);
    mapDma(client, { address: PAGE, size: PAGE });
    expect(errnoOf(() => mapDma(client, { address: PAGE, size: PAGE }))).toBe("EEXIST");
    answer(client, message);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("done"));
  });

  it("loses no mark of that DMA where a log of everything has to grow for more memory", async () => {
    await using served = await Served.start();
    const { client } = served;
    const control = vfio_user_dma_logging_control.encode({ page_size: PAGE });
    feature(client, VFIO_DEVICE_FEATURE.DMA_LOGGING_START | VFIO_DEVICE_FEATURE_SET, control);
    const message = beginDma(client);
    const request = { argsz: 32, flags: 3, address: 16n * PAGE, size: PAGE };
    const id = client.send(VFIO_USER_COMMAND.DMA_MAP, vfio_user_dma_map.encode(request));
    // The server has it before it has the answer: they come by the same socket.
    answer(client, message);
    expect(client.next()).toMatchObject({ isReply: true, id, error: 0 });
    const range = { iova: 0n, length: 32n * PAGE, page_size: PAGE };
    const report = VFIO_DEVICE_FEATURE.DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_GET;
    const reply = feature(client, report, vfio_user_dma_logging_report.encode(range), 32);
    expect([...reply.subarray(vfio_user_dma_logging_report.size)]).toEqual([1, 0, 0, 0, 0, 0, 0, 0]);
  });

  it("may take away other memory, and have the answer at once", async () => {
    await using served = await Served.start();
    const { client } = served;
    mapDma(client, { address: 4n * PAGE, size: 2n * PAGE });
    const message = beginDma(client);
    unmapDma(client, 4n * PAGE, 2n * PAGE);
    expect(errnoOf(() => unmapDma(client, 4n * PAGE, 2n * PAGE))).toBe("ENOENT");
    answer(client, message);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("done"));
  });

  it("loses the DMA where it takes away the very memory, all of it, or resets the device", async () => {
    await using served = await Served.start();
    const { client } = served;
    const takings: [string, () => void][] = [
      ["the memory", () => unmapDma(client, 0n, PAGE)],
      ["all memory", () => unmapDma(client, 0n, 0n, VFIO_USER_F_DMA_UNMAP_ALL)],
      ["the device", () => client.request("DEVICE_RESET", null)],
    ];
    for (const [what, take] of takings) {
      const message = beginDma(client);
      take();
      answer(client, message);
      const expected = what === "the device" ? 0 : TEST_FAULTS.indexOf("detached");
      expect([what, client.readRegister(0, TEST_REGISTER.RESULT)]).toEqual([what, expected]);
      if (what === "the device") unmapDma(client, 0n, PAGE);
    }
    const message = beginDma(client);
    answer(client, message);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("done"));
  });

  it("may go in the middle of it, with a command under way that outlasts the DMA, and the server goes on", async () => {
    await using served = await Served.start();
    const { client } = served;
    const control = vfio_user_dma_logging_control.encode({ page_size: PAGE });
    feature(client, VFIO_DEVICE_FEATURE.DMA_LOGGING_START | VFIO_DEVICE_FEATURE_SET, control);
    beginDma(client);
    const request = { argsz: 32, flags: 3, address: 16n * PAGE, size: PAGE };
    client.send(VFIO_USER_COMMAND.DMA_MAP, vfio_user_dma_map.encode(request));
    const next = served.reconnect();
    expect(errnoOf(() => mapDma(next, { address: 0n, size: PAGE }))).toBe("none");
    expect(served.lines).toEqual([]);
  });

  it("loses the DMA where its command has to wait for that, and not the connection, even if it answers late", async () => {
    await using served = await Served.start();
    const { client } = served;
    const message = beginDma(client);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("detached"));
    answer(client, message);
    expect(client.readRegister(0, TEST_REGISTER.BYTES)).toBe(4);
    const next = beginDmaAgain(client);
    answer(client, next);
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("done"));
  });

  it("reads and writes registers of a model that allows it, in order", async () => {
    using directory = socketDirectory();
    const file = join(directory.path, "disk.img");
    const fd = openSync(file, "w");
    ftruncateSync(fd, 2 ** 20);
    closeSync(fd);
    await using server = await serveDevice({ model: "nvme", options: { file }, path: join(directory.path, "nvme") });
    using client = RawClient.open(server.path);
    mapDma(client, { address: 0x10000n, size: 2n * PAGE });
    client.regionWrite(7, 4, Uint8Array.of(6, 0));
    client.writeRegister(0, REGISTER.AQA, 0x0007_0007);
    client.writeRegister(0, REGISTER.ASQ, 0x10000);
    client.writeRegister(0, REGISTER.ACQ, 0x11000);
    client.writeRegister(0, REGISTER.CC, CC.EN);
    client.writeRegister(0, DOORBELLS, 1);
    const fetch = client.next();
    expect(fetch).toMatchObject({ command: VFIO_USER_COMMAND.DMA_READ, isReply: false });
    const message = { ...fetch, payload: fetch.payload.slice() };
    client.writeRegister(0, REGISTER.CC, 0);
    expect(client.readRegister(0, REGISTER.CC)).toBe(0);
    // It is not reset before its DMA has ended.
    expect(client.readRegister(0, REGISTER.CSTS)).toBe(CSTS.RDY);
    client.socket.sendError(message, 14);
    expect(client.readRegister(0, REGISTER.CSTS)).toBe(0);
  });
});

function beginDmaAgain(client: RawClient): Message {
  client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
  const message = client.next();
  return { ...message, payload: message.payload.slice() };
}
