import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { crc32 } from "node:zlib";
import type { MachineDescription } from "../../src/host/description.js";
import { platformOf } from "../../src/host/description.js";
import type { MachineShape } from "../../src/host/shape.js";
import { xxh3 } from "../../src/kernels/twins/xxh3.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import { layoutRegions } from "../../src/memory/guest-memory.js";
import { encodeBody } from "../../src/migration/channels/hello.js";
import { ControlConnection } from "../../src/migration/stream/control-connection.js";
import {
  encodeFrame,
  encodeHeader,
  FRAME_HEADER_BYTES,
  type FrameTypeName,
  RUN_BYTES,
} from "../../src/migration/stream/frame.js";
import { type Frame, FrameReader } from "../../src/migration/stream/frame-reader.js";
import { type ControlMessageOf, PROTOCOL_VERSION } from "../../src/migration/stream/messages.js";

/*
 * A source that a test plays, over real connections: it says what the test wants, also what no honest source would.
 */

/** One connection for pages. */
export class PlayedChannel {
  readonly socket: Socket;
  readonly #channel: number;
  readonly #reader = new FrameReader(0, ["ACCEPTED", "ROUND_ACK", "REFUSED"]);
  readonly #answers: Frame[] = [];
  #wake = () => {};
  #ended = false;
  #sequence = 0;

  private constructor(socket: Socket, channel: number) {
    this.socket = socket;
    this.#channel = channel;
    socket.on("error", () => {});
    socket.on("data", (bytes) => {
      for (const frame of this.#reader.push(bytes)) this.#answers.push(frame);
      this.#wake();
    });
    socket.on("close", () => {
      this.#ended = true;
      this.#wake();
    });
  }

  static async open(port: number, channel: number): Promise<PlayedChannel> {
    const socket = connect(port, "127.0.0.1");
    await once(socket, "connect");
    return new PlayedChannel(socket, channel);
  }

  /** Shows the token, as the channel that this is or claims to be. */
  hello(token: string, arenas: readonly number[], channel: number = this.#channel): void {
    this.send("CHANNEL_HELLO", 0, encodeBody({ protocol: PROTOCOL_VERSION, token, channel, arenas: [...arenas] }));
  }

  send(type: FrameTypeName, round: number, body: Uint8Array = new Uint8Array(0)): void {
    this.socket.write(encodeFrame({ type, channel: this.#channel, sequence: this.#sequence++, round }, body));
  }

  /** Pages of arena 0, each full of one byte. Returns the frame's bytes on the wire. */
  pages(round: number, pages: readonly { page: number; byte: number }[]): number {
    const frame = pagesFrame({ channel: this.#channel, sequence: this.#sequence++, round }, pages);
    this.socket.write(frame);
    return frame.length;
  }

  endRound(round: number, pages: number, zeroPages = 0): void {
    this.send("ROUND_END", round, encodeBody({ pages, zeroPages }));
  }

  /** The next frame that comes back; undefined: the connection ended. */
  async answer(): Promise<Frame | undefined> {
    while (this.#answers.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#answers.shift();
  }
}

/** A PAGES frame of lone pages, whole and with digests that are right. */
export function pagesFrame(
  header: { channel: number; sequence: number; round: number },
  pages: readonly { page: number; byte: number }[],
): Uint8Array {
  const body = new DataView(new ArrayBuffer(pages.length * (RUN_BYTES + 8)));
  const data = Buffer.alloc(pages.length * PAGE_SIZE);
  pages.forEach(({ page, byte }, i) => {
    const content = data.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE).fill(byte);
    body.setUint32(i * RUN_BYTES, page, true);
    body.setUint32(i * RUN_BYTES + 4, 2, true);
    body.setBigUint64(pages.length * RUN_BYTES + i * 8, xxh3(content), true);
  });
  const bytes = new Uint8Array(body.buffer);
  const frame = new Uint8Array(FRAME_HEADER_BYTES + bytes.length + data.length);
  encodeHeader(frame, 0, {
    type: "PAGES",
    ...header,
    arena: 0,
    runs: pages.length,
    bodyBytes: bytes.length,
    dataBytes: data.length,
    bodyChecksum: crc32(bytes),
  });
  frame.set(bytes, FRAME_HEADER_BYTES);
  frame.set(data, FRAME_HEADER_BYTES + bytes.length);
  return frame;
}

/** What a guest can tell a machine without devices by. */
export function bareShape(machine: MachineDescription): MachineShape {
  const memory = layoutRegions(machine.memory, platformOf(machine));
  return {
    memory: memory.map(({ firstPage, pages, writeable }) => ({ firstPage, pages, writeable })),
    vcpus: machine.vcpus.count,
    devices: [],
  };
}

/** The control connection of a played source. */
export class PlayedSource implements AsyncDisposable {
  readonly control: ControlConnection;
  readonly #port: number;
  readonly #channels: PlayedChannel[] = [];

  private constructor(control: ControlConnection, port: number) {
    this.control = control;
    this.#port = port;
  }

  static async connect(port: number): Promise<PlayedSource> {
    const socket = connect(port, "127.0.0.1");
    await once(socket, "connect");
    return new PlayedSource(new ControlConnection(socket), port);
  }

  /** Offers a machine without devices, and returns the token that channels must show. */
  async offer(
    machine: MachineDescription,
    channels: number,
    migration = "played",
    shape: MachineShape = bareShape(machine),
  ): Promise<string> {
    await this.control.send({
      type: "HELLO",
      protocol: PROTOCOL_VERSION,
      software: "a test",
      migration,
      mover: { kind: "dirtmap", machine, channels, verify: "after" },
      shape,
      runAfterMs: 0,
    });
    const answer = await this.control.receive();
    if (answer.type !== "ACCEPT" || answer.mover.kind !== "dirtmap") {
      throw new Error(`the destination said ${JSON.stringify(answer)}`);
    }
    return answer.mover.token;
  }

  /** Another connection, not yet introduced. */
  async channel(number: number): Promise<PlayedChannel> {
    const channel = await PlayedChannel.open(this.#port, number);
    this.#channels.push(channel);
    return channel;
  }

  begin(round: number, pages: number, phase: ControlMessageOf<"ROUND_BEGIN">["phase"] = "stop-copy"): Promise<void> {
    return this.control.send({ type: "ROUND_BEGIN", round, phase, pages });
  }

  end(round: number, pages: number, bytes: number, zeroPages = 0): Promise<void> {
    return this.control.send({ type: "ROUND_END", round, pages, zeroPages, bytes });
  }

  /** What the destination says in the end: READY, or why not. */
  async prepare(round: number): Promise<string> {
    await this.control.send({ type: "VCPU_STATE", data: new TextEncoder().encode("0") });
    await this.control.send({ type: "PREPARE", round });
    return await this.verdict();
  }

  /** The type of the destination's next message, with the reason where it is an ABORT. */
  async verdict(): Promise<string> {
    const answer = await this.control.receive();
    return answer.type === "ABORT" ? `ABORT: ${answer.message}` : answer.type;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { socket } of this.#channels) socket.destroy();
    await this.control.close();
  }
}
