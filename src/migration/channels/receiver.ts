import type { Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { DirtmapError } from "../../errors.js";
import { ZERO_PAGE_DIGEST } from "../../kernels/pages.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import { dup } from "../../sys/fd.js";
import { adviseHugePages } from "../../sys/hugepages.js";
import { RpcClient } from "../../threads/rpc.js";
import type { PageReceiver } from "../data-plane.js";
import type { Listener } from "../transport/listener.js";
import { digestTable, scratchLayout } from "./layout.js";
import type { ReceiverOperations, ReceiverThreadData } from "./receiver-thread.js";

/**
 * Takes the channels of one migration from a listener, one thread each, as they come. Connections that don't show the
 * token are turned away, and the next one is taken instead.
 * @param args.memory of a machine that doesn't run; all zero
 */
export function openReceiver(args: {
  memory: GuestMemory;
  listener: Listener;
  channels: number;
  token: string;
  onRefused?: (error: unknown) => void;
}): PageReceiver {
  const { memory, listener, channels, token, onRefused = () => {} } = args;
  const tables = memory.arenas.map((arena) => digestTable(arena, scratchLayout(arena, channels)));
  for (const arena of memory.arenas) adviseHugePages(arena.u8);
  for (const table of tables) table.fill(ZERO_PAGE_DIGEST);
  const closing = new AbortController();
  let fail: (error: unknown) => void = () => {};
  const failed = new Promise<never>((_, reject) => {
    fail = reject;
  });
  // Whoever doesn't look at it is told by the control connection.
  failed.catch(() => {});

  const workers = Array.from({ length: channels }, (_, slice) => {
    const workerData: ReceiverThreadData = {
      arenas: memory.arenas.map((arena) => ({ memory: arena.memory, ramBytes: arena.scratch.offset })),
      slice,
      channels,
      token,
      credentials: listener.credentials,
    };
    return new Worker(new URL("./receiver-thread.js", import.meta.url), { workerData });
  });

  const serveSlice = async (worker: Worker) => {
    const thread = new RpcClient<ReceiverOperations>(worker);
    for (;;) {
      const socket = await listener.accept(closing.signal);
      try {
        await thread.call("take", handOver(socket));
        break;
      } catch (error) {
        if (closing.signal.aborted) return;
        onRefused(error);
      }
    }
    await thread.call("run", undefined);
  };
  for (const worker of workers) {
    serveSlice(worker).catch((error: unknown) => {
      if (!closing.signal.aborted) fail(error);
    });
  }

  return {
    failed,
    digests: () => ({ arenas: tables }),
    async [Symbol.asyncDispose]() {
      closing.abort(new DirtmapError("the receiver was closed", { code: "RECEIVER_CLOSED" }));
      await Promise.all(workers.map((worker) => worker.terminate()));
    },
  };
}

/**
 * The descriptor of an accepted connection, for another thread. Sockets can't be posted, but descriptors are the
 * process's: a duplicate is made before this thread lets go of its own. Nothing has been read from it yet.
 */
function handOver(socket: Socket): number {
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  const copy = dup(fd);
  socket.destroy();
  return copy;
}
