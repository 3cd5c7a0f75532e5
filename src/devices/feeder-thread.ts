import { createSocket } from "node:dgram";
import { parentPort } from "node:worker_threads";
import { serve } from "../threads/rpc.js";
import { MAX_DATAGRAM, MIN_DATAGRAM } from "./feed.js";
import type { FeederOperations } from "./feeder.js";

/*
 * The entry of the feeder: sends datagrams to the NICs of a machine, each at its own pace, over the loopback interface.
 */

if (parentPort === null) throw new Error("feeder-thread.ts is the entry of a worker");

/** A feeder that was kept from running catches up this much at most. */
const MAX_BURST = 32;
const TURN_MS = 2;

const socket = createSocket({ type: "udp4", sendBufferSize: 1 << 20 });
// A datagram that can't be sent is a lost datagram.
socket.on("error", () => undefined);
const payload = Buffer.alloc(MAX_DATAGRAM);
for (let i = 0; i < payload.length; i++) payload[i] = (i * 131) ^ (i >>> 8);

interface Feed {
  readonly perMs: number;
  due: number;
}

const feeds = new Map<number, Feed>();
let timer: NodeJS.Timeout | undefined;
let last = performance.now();
let random = 1;
let sent = 0;

function turn(): void {
  const now = performance.now();
  for (const [port, feed] of feeds) {
    feed.due = Math.min(MAX_BURST, feed.due + (now - last) * feed.perMs);
    for (; feed.due >= 1; feed.due--) {
      random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
      const bytes = MIN_DATAGRAM + (random % (MAX_DATAGRAM - MIN_DATAGRAM + 1));
      payload.writeUInt32LE(sent++ >>> 0, 0);
      // A copy per datagram: the socket may send it later than this returns.
      socket.send(Buffer.from(payload.subarray(0, bytes)), port, "127.0.0.1");
    }
  }
  last = now;
}

const operations: FeederOperations = {
  feed({ port, datagramsPerSecond }) {
    feeds.set(port, { perMs: datagramsPerSecond / 1000, due: 0 });
    if (timer !== undefined) return;
    last = performance.now();
    timer = setInterval(turn, TURN_MS);
  },
  stop({ port }) {
    feeds.delete(port);
    if (feeds.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  },
  sent: () => sent,
};

serve(parentPort, operations);
