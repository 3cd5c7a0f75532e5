import { Socket } from "node:net";
import { parentPort, workerData } from "node:worker_threads";
import { DirtmapError } from "../../errors.js";
import { loadKernels } from "../../kernels/kernels.js";
import { openArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { serve } from "../../threads/rpc.js";
import type { Problem } from "../stream/control-connection.js";
import type { TlsCredentials } from "../transport/credentials.js";
import { scratchLayout } from "./layout.js";
import type { CarriedRound } from "./page-sink.js";
import { ReceiverChannel } from "./receiver-channel.js";

/** What a receiver's thread is started with. */
export interface ReceiverThreadData {
  readonly arenas: readonly { readonly memory: WebAssembly.Memory; readonly ramBytes: number }[];
  readonly channels: number;
  readonly token: string;
  /** What another source is told that connects meanwhile. */
  readonly busy: Problem;
  /** Absent: plain TCP. */
  readonly credentials: TlsCredentials | undefined;
}

/** What a receiver's thread does when asked. `id` is the main thread's number of a connection. */
export type ReceiverOperations = {
  /**
   * Takes over the descriptor of an accepted connection, and resolves with the channel's number when it has shown the
   * migration's token. The thread owns the descriptor from the call on; connections are met beside each other.
   */
  meet(args: { id: number; fd: number }): Promise<number>;
  /** The connection is a channel, and all others have joined, too. */
  accept(id: number): void;
  /** The connection is not wanted. */
  refuse(args: { id: number; problem: Problem }): void;
  /** Ends the connection without a word. */
  drop(id: number): void;
  /** Resolves when the source has closed the channel in an orderly way; rejects when it breaks. */
  run(id: number): Promise<void>;
  /** The control connection has begun a round. */
  beginRound(round: number): void;
  /** What each of this thread's channels carried in the round that is said to be over. */
  endRound(round: number): CarriedRound[];
  /** No page may come any more. */
  seal(): void;
  /** Closes all descriptors. */
  close(): void;
};

const data: ReceiverThreadData = workerData;
const arenas = data.arenas.map(({ memory, ramBytes }) => {
  const arena = ramArena(openArena(memory), ramBytes);
  return { arena, kernels: loadKernels(memory), layout: scratchLayout(arena, data.channels) };
});
/** All that were met, whatever became of them; those of `accepted` are the migration's channels. */
const connections = new Map<number, ReceiverChannel>();
const accepted = new Set<ReceiverChannel>();

function connection(id: number): ReceiverChannel {
  const found = connections.get(id);
  if (found === undefined) throw new Error(`there is no connection ${id}`);
  return found;
}

const dropped = () => new DirtmapError("newer connections took the place of this one", { code: "TOO_MANY" });

const operations: ReceiverOperations = {
  async meet({ id, fd }) {
    const { channels, token, busy, credentials } = data;
    const candidate = new ReceiverChannel({ arenas, channels, token, busy });
    connections.set(id, candidate);
    if (credentials === undefined) candidate.receivePlain(fd);
    else await candidate.receiveTls(new Socket({ fd, readable: true, writable: true }), credentials);
    return await candidate.joined;
  },
  accept(id) {
    accepted.add(connection(id));
    connection(id).accept();
  },
  refuse({ id, problem }) {
    connection(id).refuse(problem);
  },
  drop(id) {
    connections.get(id)?.destroy(dropped());
  },
  run: (id) => connection(id).ended,
  beginRound(round) {
    for (const channel of accepted) channel.beginRound(round);
  },
  endRound: (round) => [...accepted].map((channel) => channel.endRound(round)),
  seal() {
    for (const channel of accepted) channel.seal();
  },
  close() {
    for (const channel of connections.values()) channel.destroy(dropped());
  },
};

if (parentPort !== null) serve(parentPort, operations);
