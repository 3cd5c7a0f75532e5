import { closeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  DIRTMAP_COMMAND,
  DIRTMAP_WRITE_PATH,
  dirtmap_client_memory,
  dirtmap_write_path,
  VFIO_USER_COMMAND,
  vfio_user_dma_access,
} from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import type { RawClient } from "../raw-client.test.helper.js";
import { dma, errnoOf, mapDma, moveData, Served, setState, sharedMemory, told } from "./served.test.helper.js";
import { TEST_REGISTER } from "./test-model.test.helper.js";

/*
 * What a control connection does with the memory of the device's client.
 */

const PAGE = 4096;
const BASE = 0x40000n;
const { direct, messages } = DIRTMAP_WRITE_PATH;

function switchPath(control: RawClient, path: number): void {
  control.call(DIRTMAP_COMMAND.WRITE_PATH, dirtmap_write_path, { argsz: dirtmap_write_path.size, path });
}

/** Sends a command whose answer waits for the device's client; returns what the client was asked, and the answer. */
function asked(
  { client }: Served,
  control: RawClient,
  command: number,
  { address, count, data = new Uint8Array(0) }: { address: bigint; count: bigint; data?: Uint8Array },
  { times = 1, answer }: { times?: number; answer: (message: Message) => void },
): { requests: { command: number; address: bigint; data: Buffer }[]; reply: Message } {
  const payload = new Uint8Array(dirtmap_client_memory.size + data.byteLength);
  dirtmap_client_memory.encode({ address, count }, payload);
  payload.set(data, dirtmap_client_memory.size);
  control.send(command, payload);
  const requests = Array.from({ length: times }, () => {
    const message = client.next();
    const request = {
      command: message.command,
      address: vfio_user_dma_access.decode(message.payload).address,
      data: Buffer.from(message.payload.slice(vfio_user_dma_access.size)),
    };
    answer(message);
    return request;
  });
  return { requests, reply: control.next() };
}

describe.runIf(process.platform === "linux")("the memory of a device's client, over a control connection", () => {
  let served: Served;
  let control: RawClient;
  let memory: ReturnType<typeof sharedMemory>;
  /** What the client was asked to write, and does not. */
  const written: { address: bigint; bytes: number }[] = [];

  beforeEach(async () => {
    served = await Served.start();
    control = served.control();
    memory = sharedMemory(4 * PAGE);
    written.length = 0;
    mapDma(served.client, { address: BASE, size: BigInt(4 * PAGE) }, [memory.fd]);
    served.client.onCommand = (message, client) => {
      const { address, count } = vfio_user_dma_access.decode(message.payload);
      expect(message.command).toBe(VFIO_USER_COMMAND.DMA_WRITE);
      written.push({ address, bytes: Number(count) });
      client.socket.sendReply(message, null);
    };
  });

  afterEach(async () => {
    control[Symbol.dispose]();
    await served[Symbol.asyncDispose]();
    closeSync(memory.fd);
  });

  describe("the path of the device's writes", () => {
    it("is what the client gave, until it is switched: then the client is asked for each write, and for no read", () => {
      const { client } = served;
      expect(dma(client, "WRITE", { address: BASE, value: 0x11 })).toBe("done");
      expect(memory.u8[0]).toBe(0x11);
      expect(told(control)).toMatchObject({ writePath: { path: "direct", chosenBy: null } });

      switchPath(control, messages);
      expect(told(control)).toMatchObject({
        writePath: { path: "messages", chosenBy: expect.stringMatching(/^control/) },
      });
      expect(dma(client, "WRITE", { address: BASE, value: 0x22 })).toBe("done");
      expect(written).toEqual([{ address: BASE, bytes: 4 }]);
      // The client did not do it, and nobody else did.
      expect(memory.u8[0]).toBe(0x11);
      expect(dma(client, "READ", { address: BASE })).toBe("done");
      expect(client.readRegister(0, TEST_REGISTER.VALUE)).toBe(0x11111111);

      switchPath(control, direct);
      expect(dma(client, "WRITE", { address: BASE, value: 0x33 })).toBe("done");
      expect([written.length, memory.u8[0]]).toEqual([1, 0x33]);
    });

    it("holds for what is mapped after the switch, and through a reset", () => {
      const { client } = served;
      switchPath(control, messages);
      mapDma(client, { address: 0x90000n, size: BigInt(PAGE) }, [memory.fd]);
      client.request("DEVICE_RESET", null);
      expect(dma(client, "WRITE", { address: 0x90000n, value: 0x44 })).toBe("done");
      expect(written).toEqual([{ address: 0x90000n, bytes: 4 }]);
    });

    it("is one connection's to choose, and goes back when that ends", async () => {
      using other = served.control();
      switchPath(control, messages);
      expect(errnoOf(() => switchPath(other, direct))).toBe("EBUSY");
      control[Symbol.dispose]();
      const until = performance.now() + 10_000;
      while (told(other).writePath?.path !== "direct" && performance.now() < until)
        await new Promise((resolve) => setTimeout(resolve, 5));
      expect(dma(served.client, "WRITE", { address: BASE, value: 0x55 })).toBe("done");
      expect([written, memory.u8[0]]).toEqual([[], 0x55]);
      switchPath(other, messages);
    });

    it("is refused where there is no such path, or the device's client itself asks", () => {
      expect(errnoOf(() => switchPath(control, 2))).toBe("EINVAL");
      expect(errnoOf(() => switchPath(served.client, messages))).toBe("EPERM");
    });
  });

  describe("a read, a write and a rewrite", () => {
    const { CLIENT_READ, CLIENT_WRITE, CLIENT_REWRITE } = DIRTMAP_COMMAND;
    const accept = (message: Message) => served.client.socket.sendReply(message, null);

    it("write where nothing is mapped, by a message to the client", () => {
      const data = Buffer.from("an entry of an MSI-X table");
      const request = { address: 0xfeb0_2000n, count: BigInt(data.byteLength), data };
      const { requests, reply } = asked(served, control, CLIENT_WRITE, request, { answer: accept });
      expect(requests).toEqual([{ command: VFIO_USER_COMMAND.DMA_WRITE, address: 0xfeb0_2000n, data }]);
      expect(reply.error).toBe(0);
    });

    it("read what the client answers", () => {
      const answer = (message: Message) => {
        const whole = new Uint8Array(vfio_user_dma_access.size + 8).fill(0x77);
        whole.set(message.payload.subarray(0, vfio_user_dma_access.size));
        served.client.socket.sendReply(message, whole);
      };
      const { reply } = asked(served, control, CLIENT_READ, { address: 0xfeb0_2000n, count: 8n }, { answer });
      expect(Buffer.from(reply.payload.slice(dirtmap_client_memory.size))).toEqual(Buffer.alloc(8, 0x77));
    });

    it("write what whole pages hold over themselves, once the device is stopped", () => {
      const rewrite = { address: BASE + BigInt(PAGE), count: BigInt(2 * PAGE) };
      const encoded = dirtmap_client_memory.encode(rewrite);
      expect(errnoOf(() => control.request(CLIENT_REWRITE, encoded))).toBe("EBUSY");
      setState(control, "STOP");
      memory.u8.fill(0xa1, PAGE, 2 * PAGE);
      memory.u8.fill(0xa2, 2 * PAGE, 3 * PAGE);
      // A run of pages is one message.
      const { requests, reply } = asked(served, control, CLIENT_REWRITE, rewrite, { answer: accept });
      const held = Buffer.concat([Buffer.alloc(PAGE, 0xa1), Buffer.alloc(PAGE, 0xa2)]);
      expect(requests).toEqual([{ command: VFIO_USER_COMMAND.DMA_WRITE, address: BASE + BigInt(PAGE), data: held }]);
      expect(reply.error).toBe(0);
    });

    it("are refused with EFAULT where the client refuses them", () => {
      const refuse = (message: Message) => served.client.socket.sendError(message, 22);
      const request = { address: 0x1000n, count: 4n, data: Buffer.alloc(4) };
      expect(asked(served, control, CLIENT_WRITE, request, { answer: refuse }).reply.error).toBe(14);
    });

    it("are refused for what can't be, before the client is asked", () => {
      const errno = (command: number, address: bigint, count: bigint, data = 0) => {
        const payload = new Uint8Array(dirtmap_client_memory.size + data);
        dirtmap_client_memory.encode({ address, count }, payload);
        return errnoOf(() => control.request(command, payload));
      };
      expect(errno(CLIENT_READ, 0n, 2n ** 20n + 1n)).toBe("EINVAL");
      expect(errno(CLIENT_READ, 2n ** 64n - 4n, 8n)).toBe("EINVAL");
      expect(errno(CLIENT_WRITE, 0n, 8n, 4)).toBe("EINVAL");
      expect(errno(CLIENT_REWRITE, BASE + 1n, BigInt(PAGE))).toBe("EINVAL");
      expect(errno(CLIENT_REWRITE, BASE, 1n)).toBe("EINVAL");
      setState(control, "STOP");
      expect(errno(CLIENT_REWRITE, 0x100_0000n, BigInt(PAGE))).toBe("EFAULT");
      expect(errnoOf(() => control.request(CLIENT_READ, new Uint8Array(8)))).toBe("EINVAL");
      served.client[Symbol.dispose]();
      const payload = dirtmap_client_memory.encode({ address: 0n, count: 4n });
      let code = "";
      for (let tries = 0; tries < 500 && code !== "ENOTCONN"; tries++)
        code = errnoOf(() => control.request(CLIENT_READ, payload));
      expect(code).toBe("ENOTCONN");
    });
  });
});

describe.runIf(process.platform === "linux")("a device that waits for another's state", () => {
  it("does no work before it has it, whatever its client does", async () => {
    await using served = await Served.start({ incoming: true });
    using control = served.control();
    using memory = ownMemory();
    mapDma(served.client, { address: BASE, size: BigInt(PAGE) }, [memory.fd]);
    const works = () => {
      try {
        return dma(served.client, "WRITE", { address: BASE, value: 1 });
      } catch {
        return "waits";
      }
    };
    expect(told(control)).toMatchObject({ waitsForState: true, state: "RUNNING" });
    expect(works()).toBe("waits");
    served.client.request("DEVICE_RESET", null);
    expect(works()).toBe("waits");
    // A migration that fails leaves it as it was.
    {
      using failing = served.control();
      setState(failing, "RESUMING");
    }
    await served.logged(/reset, since its state is another's/);
    expect([told(control).waitsForState, works()]).toEqual([true, "waits"]);
  });

  it("works once an operator has reset it", async () => {
    await using served = await Served.start({ incoming: true });
    using control = served.control();
    using memory = ownMemory();
    mapDma(served.client, { address: BASE, size: BigInt(PAGE) }, [memory.fd]);
    control.request("DEVICE_RESET", null);
    expect(told(control).waitsForState).toBe(false);
    expect(dma(served.client, "WRITE", { address: BASE, value: 1 })).toBe("done");
  });

  it("works with the state that it was given, from the first running state on", async () => {
    await using source = await Served.start();
    await using served = await Served.start({ incoming: true });
    using from = source.control();
    using control = served.control();
    using memory = ownMemory();
    mapDma(served.client, { address: BASE, size: BigInt(PAGE) }, [memory.fd]);
    setState(from, "STOP_COPY");
    setState(control, "RESUMING");
    moveData(from, control);
    setState(control, "STOP");
    expect(told(control).waitsForState).toBe(true);
    setState(control, "RUNNING");
    expect(told(control).waitsForState).toBe(false);
    expect(dma(served.client, "WRITE", { address: BASE, value: 1 })).toBe("done");
  });
});

function ownMemory(): { fd: number } & Disposable {
  const { fd } = sharedMemory(PAGE);
  return { fd, [Symbol.dispose]: () => closeSync(fd) };
}
