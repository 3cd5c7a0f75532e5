import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { PAGE_SIZE } from "../../memory/address.js";
import { EventFd } from "../../sys/eventfd.js";
import { dup } from "../../sys/fd.js";
import { socketPair } from "../../sys/unix-socket.js";
import { VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
} from "../../uapi/vfio-user.js";
import { type Message, MessageSocket } from "../message-socket.js";
import { DmaChannel } from "./dma-channel.js";
import { readable, sharedMemory } from "./served.test.helper.js";
import { ServedDevice } from "./served-device.js";
import { TEST_COMMAND, TEST_REGISTER, TestModel } from "./test-model.test.helper.js";

/*
 * Writes that a device posts: the client, here on the same thread, sends its answers before they are waited for. Ids of commands
 * begin at 1.
 */

const P = BigInt(PAGE_SIZE);
const PAGE = new Uint8Array(PAGE_SIZE).fill(7);
const HEAD = vfio_user_dma_access.size;

describe.runIf(process.platform === "linux")("a write that is posted", () => {
  let client: MessageSocket;
  let channel: DmaChannel;
  let broken: string[];
  /** A command comes meanwhile: returns how long the channel goes on waiting. */
  let taken: () => number;
  const stop = EventFd.create();
  afterAll(() => stop[Symbol.dispose]());

  beforeEach(() => {
    const [own, clients] = socketPair();
    client = new MessageSocket(clients, 2 ** 20);
    broken = [];
    taken = () => Number.POSITIVE_INFINITY;
    channel = new DmaChannel({
      socket: new MessageSocket(own, 2 ** 20),
      maxTransfer: 2 ** 20,
      stop: stop.fd,
      take: () => taken(),
      broken: (why) => broken.push(why),
    });
  });

  afterEach(() => client[Symbol.dispose]());

  /** The client's answer to a write, whether or not that has been sent. */
  function answer(id: number, { address = 0n, count = BigInt(PAGE_SIZE), error = 0 } = {}): void {
    const flags = VFIO_USER_F_TYPE_REPLY | (error === 0 ? 0 : VFIO_USER_F_ERROR);
    const payload = error === 0 ? vfio_user_dma_access.encode({ address, count }) : null;
    client.send({ id, command: VFIO_USER_COMMAND.DMA_WRITE, flags, error }, payload);
  }

  /** What the client has been sent. */
  function sent() {
    const messages: { at: bigint; bytes: number; answered: boolean }[] = [];
    for (let next = client.receive(); next !== undefined && next !== "closed"; next = client.receive()) {
      const { payload, noReply } = next as Message;
      const { address } = vfio_user_dma_access.decode(payload);
      messages.push({ at: address, bytes: payload.byteLength - HEAD, answered: !noReply });
    }
    return messages;
  }

  it("goes out with the next one, and only the last of them is answered", () => {
    channel.post(0n, PAGE, 0, PAGE_SIZE);
    expect(sent()).toEqual([]);
    channel.post(8n * P, PAGE, 0, 8);
    expect(sent()).toEqual([{ at: 0n, bytes: PAGE_SIZE, answered: false }]);
    channel.post(8n * P + 8n, PAGE, 0, 8);
    answer(3, { address: 8n * P + 8n, count: 8n });
    expect(channel.settle()).toBeNull();
    expect(sent()).toEqual([
      { at: 8n * P, bytes: 8, answered: false },
      { at: 8n * P + 8n, bytes: 8, answered: true },
    ]);
    expect(channel.settle()).toBeNull();
    expect([sent(), broken]).toEqual([[], []]);
  });

  it("is one message with those that go on where it ends, as far as a message goes", () => {
    const pages = 65_536 / PAGE_SIZE + 2;
    for (let i = 0; i < pages; i++) channel.post(BigInt(i) * P, PAGE, 0, PAGE_SIZE);
    answer(2, { address: 65_536n, count: 2n * P });
    expect(channel.settle()).toBeNull();
    expect(sent()).toEqual([
      { at: 0n, bytes: 65_536, answered: false },
      { at: 65_536n, bytes: 2 * PAGE_SIZE, answered: true },
    ]);
  });

  it("is before any DMA that is waited for", () => {
    channel.post(0n, PAGE, 0, PAGE_SIZE);
    answer(2, { address: 4n * P });
    expect(channel.write(4n * P, PAGE, 0, PAGE_SIZE)).toBeNull();
    expect(sent()).toEqual([
      { at: 0n, bytes: PAGE_SIZE, answered: false },
      { at: 4n * P, bytes: PAGE_SIZE, answered: true },
    ]);
  });

  it("is a fault of all of them where the client refuses it, and may be answered although nobody asked", () => {
    for (const error of [14, 0]) {
      const first = error === 14 ? 1 : 3;
      channel.post(0n, PAGE, 0, PAGE_SIZE);
      channel.post(4n * P, PAGE, 0, PAGE_SIZE);
      answer(first, { error });
      answer(first + 1, { address: 4n * P });
      expect(channel.settle()).toBe(error === 14 ? "not-mapped" : null);
    }
    expect(broken).toEqual([]);
  });

  it("is waited for after some, so that the client is never flooded", () => {
    answer(65, { address: 64n * P, count: 8n });
    for (let i = 0; i < 100; i++) expect(channel.post(BigInt(i) * P, PAGE, 0, 8)).toBeNull();
    answer(100, { address: 99n * P, count: 8n });
    expect(channel.settle()).toBeNull();
    expect(sent().flatMap(({ answered }, i) => (answered ? [i] : []))).toEqual([64, 99]);
  });

  it("holds up an unmapping of what it reaches, until it has happened", () => {
    let reached: boolean[] = [];
    taken = () => {
      reached = [0n, 4n * P, 5n * P].map((at) => channel.reaches(at, P));
      return 0;
    };
    channel.post(0n, PAGE, 0, PAGE_SIZE);
    channel.post(4n * P, PAGE, 0, PAGE_SIZE);
    client.sendCommand(VFIO_USER_COMMAND.DMA_UNMAP, 9, new Uint8Array(24));
    expect([channel.settle(), channel.owes]).toEqual(["detached", true]);
    expect(reached).toEqual([true, true, false]);
  });

  describe("by a device", () => {
    let device: ServedDevice;
    let interrupt: EventFd;

    beforeEach(async () => {
      const model = new (class extends TestModel {
        readonly postsWrites = true;
      })();
      device = await ServedDevice.start({ id: "test", model, dma: "auto", onFailure: () => {} });
      const { fd } = sharedMemory(16 * PAGE_SIZE);
      const region = { page: 0, pages: 16, readable: true, writeable: true, offset: 0, fileIo: false };
      device.memory.map(region, fd, channel);
      device.memory.channel = channel;
      device.memory.writePath = "messages";
      interrupt = EventFd.create();
      device.irqs.setEventFds("trigger", VFIO_PCI_IRQ_INDEX.MSIX, { start: 0, count: 1 }, [dup(interrupt.fd)]);
    });

    afterEach(() => {
      device[Symbol.dispose]();
      interrupt[Symbol.dispose]();
    });

    const write = (page: number) => device.memory.write(page, 0, PAGE, 0, PAGE_SIZE);
    const raise = () => device.raiseIrq(VFIO_PCI_IRQ_INDEX.MSIX, 0);

    it("has happened at the end of its slice of work", () => {
      const registers = Buffer.alloc(20);
      registers.writeUInt32LE(PAGE_SIZE, TEST_REGISTER.BYTES - TEST_REGISTER.ADDRESS);
      registers.writeUInt32LE(TEST_COMMAND.WRITE, TEST_REGISTER.COMMAND - TEST_REGISTER.ADDRESS);
      device.model.regionWrite(0, TEST_REGISTER.ADDRESS, registers.subarray(0, 16));
      device.model.regionWrite(0, TEST_REGISTER.COMMAND, registers.subarray(16));
      answer(1);
      device.run(1);
      expect(sent()).toEqual([{ at: 0n, bytes: PAGE_SIZE, answered: true }]);
      expect(device.memory.posts).toBe(false);
    });

    it("has happened before an interrupt, and before its page is read", () => {
      device.memory.posts = true;
      write(3);
      answer(1, { address: 3n * P });
      raise();
      expect(sent()).toEqual([{ at: 3n * P, bytes: PAGE_SIZE, answered: true }]);
      expect(readable(interrupt.fd)).toBe(true);
      write(5);
      device.memory.read(4, 0, new Uint8Array(8), 0, 8);
      expect(sent()).toEqual([]);
      answer(2, { address: 5n * P });
      device.memory.read(5, 0, new Uint8Array(8), 0, 8);
      expect(sent()).toEqual([{ at: 5n * P, bytes: PAGE_SIZE, answered: true }]);
    });

    it("is told of by an interrupt only when it has happened, where the client lets it wait", () => {
      device.memory.posts = true;
      taken = () => 0;
      write(3);
      client.sendCommand(VFIO_USER_COMMAND.DMA_UNMAP, 9, new Uint8Array(24));
      raise();
      device.run(1);
      expect(readable(interrupt.fd)).toBe(false);
      channel.resume();
      const late = { id: 1, command: VFIO_USER_COMMAND.DMA_WRITE, isReply: true, noReply: false, error: 0 };
      expect(channel.takeLate({ ...late, payload: new Uint8Array(0), fds: [] })).toBe(true);
      device.run(1);
      expect(readable(interrupt.fd)).toBe(true);
    });

    it("is counted as a fault where the client refuses it", () => {
      device.memory.posts = true;
      write(3);
      answer(1, { error: 14 });
      raise();
      expect(device.memory.counts.faults).toBe(1);
      expect(readable(interrupt.fd)).toBe(true);
    });

    it("is none at all where the client does not have to see it", () => {
      device.memory.writePath = "direct";
      device.memory.posts = true;
      write(3);
      raise();
      expect(sent()).toEqual([]);
    });
  });
});
