import { parentPort, workerData } from "node:worker_threads";
import { loadKernels } from "../../kernels/kernels.js";
import { openArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { serve } from "../../threads/rpc.js";
import type { ChannelAddress } from "../data-plane.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";
import { connect } from "../transport/connect.js";
import { transportError } from "../transport/transport-error.js";
import { ChunkQueue, RoundProgress } from "./control-words.js";
import { scratchLayout } from "./layout.js";
import { type ChannelRound, SenderChannel } from "./sender-channel.js";
import { SharedTokenBucket } from "./shared-token-bucket.js";

/** What a sender's thread is started with. */
export interface SenderThreadData {
  readonly arenas: readonly { readonly memory: WebAssembly.Memory; readonly ramBytes: number }[];
  readonly channel: number;
  readonly channels: number;
  readonly address: ChannelAddress;
  readonly queue: Int32Array<SharedArrayBuffer>;
  readonly digestQueue: Int32Array<SharedArrayBuffer>;
  readonly bucket: BigInt64Array<SharedArrayBuffer>;
  readonly progress: BigInt64Array<SharedArrayBuffer>;
}

/** What a sender's thread does when asked. */
export type SenderOperations = {
  open(): Promise<void>;
  sendRound(round: number): Promise<ChannelRound>;
  /** Digests its share of all RAM into the digest tables. */
  digest(): void;
  close(): Promise<void>;
};

const data: SenderThreadData = workerData;
const arenas = data.arenas.map(({ memory, ramBytes }) => {
  const arena = ramArena(openArena(memory), ramBytes);
  return { arena, kernels: loadKernels(memory), layout: scratchLayout(arena, data.channels) };
});
const ramPages = arenas.map(({ arena }) => arena.ramPages);
const queue = new ChunkQueue(ramPages, data.queue);
const digestQueue = new ChunkQueue(ramPages, data.digestQueue);
let channel: SenderChannel | undefined;

function opened(): SenderChannel {
  if (channel === undefined) throw new Error("the channel is not open");
  return channel;
}

const operations: SenderOperations = {
  async open() {
    const { host, port, tls, token } = data.address;
    const endpoint = { scheme: tls === undefined ? "tcp" : "tls", host, port } as const;
    channel = new SenderChannel({
      socket: await connect(endpoint, tls),
      arenas,
      channel: data.channel,
      queue,
      bucket: new SharedTokenBucket(data.bucket),
      progress: new RoundProgress(data.progress),
      explain: (error) => transportError(error, "send pages to", endpoint),
    });
    await channel.open({ protocol: PROTOCOL_VERSION, token, channel: data.channel + 1, arenas: ramPages });
  },
  sendRound: (round) => opened().sendRound(round),
  digest() {
    for (let chunk = digestQueue.take(); chunk !== undefined; chunk = digestQueue.take()) {
      const { kernels, layout } = arenas[chunk.arena];
      kernels.digestPages(chunk.firstPage, chunk.endPage, layout.digests);
    }
  },
  async close() {
    await channel?.close();
  },
};

if (parentPort !== null) serve(parentPort, operations);
