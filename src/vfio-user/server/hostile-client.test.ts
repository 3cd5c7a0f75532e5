import { readdirSync } from "node:fs";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { EventFd } from "../../sys/eventfd.js";
import { socketPair } from "../../sys/unix-socket.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
} from "../../uapi/vfio-user.js";
import { type Message, MessageSocket } from "../message-socket.js";
import { DmaChannel } from "./dma-channel.js";
import { dma, errnoOf, mapDma, Served } from "./served.test.helper.js";

/*
 * A server whose client answers its DMA_READ and DMA_WRITE as it likes.
 */

const { DMA_READ, DMA_WRITE, REGION_READ } = VFIO_USER_COMMAND;
const HEAD = vfio_user_dma_access.size;
const ADDRESS = 0x40000n;
const BYTES = 64;
const SECRET = 0x5c;

/** What a client answers: right, but for what is given. */
interface Answer {
  readonly id?: number;
  readonly command?: number;
  readonly flags?: number;
  readonly error?: number;
  readonly address?: bigint;
  readonly count?: bigint;
  /** Bytes of the payload. */
  readonly bytes?: number;
  readonly descriptors?: number;
}

/** The payload that a right answer has, with what is wrong in it. */
function payloadOf({ address, count, bytes }: Answer, command: number): Uint8Array {
  const right = command === DMA_READ ? HEAD + BYTES : HEAD;
  const payload = new Uint8Array(Math.max(HEAD, bytes ?? right)).fill(SECRET);
  vfio_user_dma_access.encode({ address: address ?? ADDRESS, count: count ?? BigInt(BYTES) }, payload);
  return payload.subarray(0, bytes ?? right);
}

function isRight(answer: Answer, command: number): boolean {
  const { id, command: answered, flags = VFIO_USER_F_TYPE_REPLY, address = ADDRESS, count = BigInt(BYTES) } = answer;
  const { bytes = command === DMA_READ ? HEAD + BYTES : HEAD } = answer;
  if ((id ?? 1) !== 1 || (answered ?? command) !== command || flags !== VFIO_USER_F_TYPE_REPLY) return false;
  if (command === DMA_WRITE && bytes === 0) return true;
  return address === ADDRESS && count === BigInt(BYTES) && bytes === (command === DMA_READ ? HEAD + BYTES : HEAD);
}

const FLAGS = [VFIO_USER_F_ERROR, VFIO_USER_F_NO_REPLY, 0x40, 0x8000_0000].map(
  (flag) => (VFIO_USER_F_TYPE_REPLY | flag) >>> 0,
);
const LENGTHS = [0, 1, 8, HEAD - 1, HEAD, HEAD + 1, HEAD + BYTES - 1, HEAD + BYTES, HEAD + BYTES + 1, HEAD + 4096];

const answers: fc.Arbitrary<Answer> = fc.record(
  {
    id: fc.constantFrom(0, 1, 2, 0xffff),
    command: fc.constantFrom(DMA_READ, DMA_WRITE, REGION_READ, 0, 0xffff),
    flags: fc.constantFrom(VFIO_USER_F_TYPE_REPLY, ...FLAGS),
    error: fc.constantFrom(0, 14, 0xffff_ffff),
    address: fc.constantFrom(ADDRESS, 0n, ADDRESS + 1n, ADDRESS + (1n << 40n), 2n ** 64n - 1n),
    count: fc.constantFrom(BigInt(BYTES), 0n, 1n, BigInt(BYTES - 1), (1n << 32n) + BigInt(BYTES), 2n ** 64n - 1n),
    bytes: fc.constantFrom(...LENGTHS),
    descriptors: fc.nat(3),
  },
  { requiredKeys: [] },
);

describe.runIf(process.platform === "linux")("a DMA by messages", () => {
  it("takes no answer that differs in anything from what was asked, and keeps nothing of it", () => {
    using spare = EventFd.create();
    const before = readdirSync("/proc/self/fd").length;
    fc.assert(
      fc.property(answers, fc.constantFrom(DMA_READ, DMA_WRITE), (answer, command) => {
        const [own, clients] = socketPair();
        using server = new MessageSocket(own, 2 ** 16);
        using client = new MessageSocket(clients, 2 ** 16);
        using stop = EventFd.create();
        const broken: string[] = [];
        const channel = new DmaChannel({
          socket: server,
          maxTransfer: 4096,
          stop: stop.fd,
          take: null,
          broken: (why) => broken.push(why),
          silent: () => {},
        });
        // Sent before it is asked for: the channel finds it as soon as it looks.
        const { id = 1, flags = VFIO_USER_F_TYPE_REPLY, error = 0, descriptors = 0 } = answer;
        const header = { id, command: answer.command ?? command, flags, error };
        client.send(header, payloadOf(answer, command), new Array(descriptors).fill(spare.fd));
        const memory = new Uint8Array(4096);
        const fault =
          command === DMA_READ
            ? channel.read(ADDRESS, memory, 0, BYTES)
            : channel.write(ADDRESS, memory.fill(1), 0, BYTES);
        const read = memory.indexOf(SECRET);

        if (isRight(answer, command)) {
          expect([fault, broken]).toEqual([null, []]);
          expect(read).toBe(command === DMA_READ ? 0 : -1);
          return;
        }
        // Nothing of a wrong answer gets into the device.
        expect(read).toBe(-1);
        expect(fault).not.toBeNull();
        const refuses = id === 1 && header.command === command && flags === FLAGS[0];
        expect(fault).toBe(refuses ? "not-mapped" : "detached");
        expect(broken).toHaveLength(refuses ? 0 : 1);
      }),
      { numRuns: 400 },
    );
    expect(readdirSync("/proc/self/fd")).toHaveLength(before);
  });
});

describe.runIf(process.platform === "linux")("a server whose client answers its DMA wrongly", () => {
  let served: Served;
  beforeEach(async () => {
    served = await Served.start();
  });
  afterEach(async () => {
    await served[Symbol.asyncDispose]();
  });

  it.each([
    ["another address", { address: ADDRESS + 8n }, /its address is not the request's/],
    ["another count", { count: 1n }, /its count is not the request's/],
    ["too much data", { bytes: HEAD + BYTES + 8 }, /88 bytes came, where 80 were due/],
    ["too little data", { bytes: HEAD + BYTES - 1 }, /79 bytes came, where 80 were due/],
  ] as const)("closes the connection for %s, says why, and takes the next client", async (_what, answer, like) => {
    const { client } = served;
    client.onCommand = (message: Message) => client.socket.sendReply(message, payloadOf(answer, message.command));
    mapDma(client, { address: ADDRESS, size: 4096n });
    // What the driver asked for at the same time may still be answered.
    expect(errnoOf(() => expect(dma(client, "READ", { address: ADDRESS, bytes: BYTES })).toBe("detached"))).toMatch(
      /^(none|CLOSED|EPIPE)$/,
    );
    await served.logged(like);
    const next = served.reconnect();
    next.onCommand = (message: Message) => next.socket.sendReply(message, payloadOf({}, message.command));
    mapDma(next, { address: ADDRESS, size: 4096n });
    expect(dma(next, "READ", { address: ADDRESS, bytes: BYTES })).toBe("done");
  });

  it("takes QEMU's answer to a DMA_WRITE, which is a header alone", () => {
    const { client } = served;
    client.onCommand = (message: Message) => client.socket.sendReply(message, null);
    mapDma(client, { address: ADDRESS, size: 4096n });
    expect(dma(client, "WRITE", { address: ADDRESS, bytes: BYTES })).toBe("done");
  });
});
