import { Socket } from "node:net";
import { parentPort, workerData } from "node:worker_threads";
import { loadKernels } from "../../kernels/kernels.js";
import { openArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { serve } from "../../threads/rpc.js";
import type { TlsCredentials } from "../transport/credentials.js";
import { scratchLayout } from "./layout.js";
import { ReceiverChannel } from "./receiver-channel.js";

/** What a receiver's thread is started with. */
export interface ReceiverThreadData {
  readonly arenas: readonly { readonly memory: WebAssembly.Memory; readonly ramBytes: number }[];
  readonly slice: number;
  readonly channels: number;
  readonly token: string;
  /** Absent: plain TCP. */
  readonly credentials: TlsCredentials | undefined;
}

/** What a receiver's thread does when asked. */
export type ReceiverOperations = {
  /**
   * Takes over the descriptor of an accepted connection, and resolves when it has shown the migration's token. The
   * thread owns the descriptor from the call on.
   */
  take(fd: number): Promise<void>;
  /** Resolves when the source has closed the channel in an orderly way; rejects when it breaks. */
  run(): Promise<void>;
};

const data: ReceiverThreadData = workerData;
const arenas = data.arenas.map(({ memory, ramBytes }) => {
  const arena = ramArena(openArena(memory), ramBytes);
  return { arena, kernels: loadKernels(memory), layout: scratchLayout(arena, data.channels) };
});
let channel: ReceiverChannel | undefined;

const operations: ReceiverOperations = {
  async take(fd) {
    const candidate = new ReceiverChannel({ arenas, slice: data.slice, token: data.token });
    if (data.credentials === undefined) candidate.receivePlain(fd);
    else await candidate.receiveTls(new Socket({ fd, readable: true, writable: true }), data.credentials);
    await candidate.joined;
    channel = candidate;
  },
  async run() {
    await channel?.ended;
  },
};

if (parentPort !== null) serve(parentPort, operations);
