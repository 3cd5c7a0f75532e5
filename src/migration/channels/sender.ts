import { Worker } from "node:worker_threads";
import type { RamBitmap } from "../../bitmap/ram-bitmap.js";
import { endThread } from "../../threads/end-thread.js";
import { RpcClient } from "../../threads/rpc.js";
import type { OpenSender, PageDigests, PageSender, SentRound } from "../data-plane.js";
import { ChunkQueue, RoundProgress } from "./control-words.js";
import { digestTable, scratchLayout } from "./layout.js";
import type { SenderOperations, SenderThreadData } from "./sender-thread.js";
import { SharedTokenBucket } from "./shared-token-bucket.js";

/**
 * Opens the channels to a destination that has given its token, one thread each.
 * @throws DirtmapError where the destination can't be reached or refuses a channel; the signal's reason
 */
export const openSender: OpenSender = async ({ memory, address, channels, signal }) => {
  signal.throwIfAborted();
  const ramPages = memory.arenas.map((arena) => arena.ramPages);
  const queue = new ChunkQueue(ramPages);
  // Of its own: a channel that breaks stops the round's queue, and the destination may be gone when digests are due.
  const digestQueue = new ChunkQueue(ramPages);
  const bucket = new SharedTokenBucket();
  const progress = RoundProgress.allocate(channels);
  const layouts = memory.arenas.map((arena) => scratchLayout(arena, channels));
  const workers: Worker[] = [];
  const threads: RpcClient<SenderOperations>[] = [];
  for (let channel = 0; channel < channels; channel++) {
    const workerData: SenderThreadData = {
      arenas: memory.arenas.map((arena) => ({ memory: arena.memory, ramBytes: arena.scratch.offset })),
      channel,
      channels,
      address,
      queue: queue.words,
      digestQueue: digestQueue.words,
      bucket: bucket.words,
      progress: progress.words,
    };
    const worker = new Worker(new URL("./sender-thread.js", import.meta.url), { workerData });
    workers.push(worker);
    threads.push(new RpcClient(worker));
  }
  const terminate = async () => {
    await Promise.all(threads.map((thread, channel) => endThread(workers[channel], thread)));
  };

  /** Has every thread do something; the first that fails makes the others stop, and is what is thrown. */
  const all = async <Result>(ask: (thread: RpcClient<SenderOperations>) => Promise<Result>): Promise<Result[]> => {
    let failure: unknown;
    const results = await Promise.all(
      threads.map((thread) =>
        ask(thread).catch((error: unknown) => {
          failure ??= error;
          queue.stop();
        }),
      ),
    );
    if (failure !== undefined) throw failure;
    return results as Result[];
  };

  let cancelled = () => {};
  try {
    const aborted = new Promise<never>((_, reject) => {
      cancelled = () => reject(signal.reason);
      signal.addEventListener("abort", cancelled, { once: true });
    });
    await Promise.race([all((thread) => thread.call("open", undefined)), aborted]);
  } catch (error) {
    await terminate();
    throw error;
  } finally {
    signal.removeEventListener("abort", cancelled);
  }

  return {
    async sendRound(round: number, pages: RamBitmap, roundSignal: AbortSignal): Promise<SentRound> {
      roundSignal.throwIfAborted();
      const startedAt = performance.now();
      memory.arenas.forEach((arena, index) => {
        arena.u32.set(pages.arenas[index].subarray(0, Math.ceil(arena.ramPages / 32)), layouts[index].bitmap >>> 2);
      });
      progress.restart();
      queue.restart();
      const stop = () => queue.stop();
      roundSignal.addEventListener("abort", stop, { once: true });
      try {
        const sent = await all((thread) => thread.call("sendRound", round));
        roundSignal.throwIfAborted();
        return {
          pages: sum(sent, "pages"),
          zeroPages: sum(sent, "zeroPages"),
          bytes: sum(sent, "bytes"),
          ms: performance.now() - startedAt,
        };
      } finally {
        roundSignal.removeEventListener("abort", stop);
      }
    },
    setBandwidth: (bytesPerSecond) => bucket.setRate(bytesPerSecond),
    progress: () => progress.total(),
    async digest(): Promise<PageDigests> {
      digestQueue.restart();
      await all((thread) => thread.call("digest", undefined));
      return { arenas: memory.arenas.map((arena, index) => digestTable(arena, layouts[index])) };
    },
    async [Symbol.asyncDispose]() {
      await Promise.allSettled(threads.map((thread) => thread.call("close", undefined)));
      await terminate();
    },
  } satisfies PageSender;
};

function sum<Key extends string>(entries: readonly Readonly<Record<Key, number>>[], key: Key): number {
  return entries.reduce((total, entry) => total + entry[key], 0);
}
