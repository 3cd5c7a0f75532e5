import { createConnection, createServer, type Socket } from "node:net";
import { crc32 } from "node:zlib";
import { FRAME_HEADER_BYTES } from "../../src/migration/stream/frame.js";

/*
 * A TCP proxy between a source and a destination that knows frames, so that a test decides about each of them. The
 * control connection is connection 0; page channels follow in the order in which they come.
 */

/** What becomes of a frame: it arrives, changed or not; the connection is cut; nothing more ever arrives, without an end. */
export type Fate = Buffer | "cut" | "stuck";

/** Asked of each whole frame. Frames are counted from 0 per connection and direction. */
export type Meddler = (frame: Buffer, index: number, connection: number) => Fate;

export interface Meddlers {
  readonly toDestination?: Meddler;
  readonly toSource?: Meddler;
}

export interface FrameProxy {
  readonly port: number;
  /** Per connection: frames that came from the source, and from the destination. */
  readonly frames: readonly (readonly [fromSource: number, fromDestination: number])[];
  /** Cuts all connections, and listens no more. */
  close(): void;
}

/** Listens on loopback, and connects on to `port`. */
export async function frameProxy(port: number, { toDestination, toSource }: Meddlers = {}): Promise<FrameProxy> {
  const sockets = new Set<Socket>();
  const frames: [number, number][] = [];
  const server = createServer((client) => {
    const upstream = createConnection({ host: "127.0.0.1", port });
    const counts: [number, number] = [0, 0];
    const connection = frames.push(counts) - 1;
    const cut = () => {
      client.destroy();
      upstream.destroy();
    };
    const relay = (from: Socket, to: Socket, direction: 0 | 1, meddle: Meddler = (frame) => frame) => {
      let buffer = Buffer.alloc(0);
      let stuck = false;
      from.on("data", (data: Buffer) => {
        if (stuck) return;
        buffer = Buffer.concat([buffer, data]);
        while (buffer.length >= FRAME_HEADER_BYTES) {
          const bytes = FRAME_HEADER_BYTES + buffer.readUInt32LE(24) + buffer.readUInt32LE(28);
          if (buffer.length < bytes) break;
          const frame = buffer.subarray(0, bytes);
          buffer = buffer.subarray(bytes);
          const fate = meddle(frame, counts[direction]++, connection);
          if (fate === "cut") return cut();
          if (fate === "stuck") {
            stuck = true;
            return;
          }
          to.write(fate);
        }
      });
      from.on("end", () => !stuck && to.end());
      from.on("error", cut);
      from.on("close", () => !stuck && to.end());
    };
    sockets.add(client).add(upstream);
    relay(client, upstream, 0, toDestination);
    relay(upstream, client, 1, toSource);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : 0,
    frames,
    close: () => {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

/** True for the control message of this type: its head is JSON, readable in the frame. */
export function says(frame: Buffer, type: string): boolean {
  return frame.includes(`"type":"${type}"`);
}

/** The frame of a control message with some of its text replaced by as much other text, and checksums that fit. */
export function reworded(frame: Buffer, pattern: RegExp, text: (found: string) => string): Buffer {
  const body = frame.subarray(FRAME_HEADER_BYTES).toString("latin1");
  return rechecked(
    Buffer.concat([frame.subarray(0, FRAME_HEADER_BYTES), Buffer.from(body.replace(pattern, text), "latin1")]),
  );
}

/** The frame, or the start of one, with checksums that fit what is in it. */
export function rechecked(frame: Buffer): Buffer {
  const bytes = Buffer.from(frame);
  if (bytes.length < FRAME_HEADER_BYTES) return bytes;
  const bodyBytes = Math.min(bytes.readUInt32LE(24), bytes.length - FRAME_HEADER_BYTES);
  bytes.writeUInt32LE(crc32(bytes.subarray(FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + bodyBytes)), 32);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, FRAME_HEADER_BYTES - 4)), 36);
  return bytes;
}
