import { Worker } from "node:worker_threads";
import { loadKernels } from "../../kernels/kernels.js";
import type { Arena } from "../../memory/arena.js";
import { endThread } from "../../threads/end-thread.js";
import { RpcClient } from "../../threads/rpc.js";
import { ENTRIES, type PageTableFormat } from "./format.js";
import type { ReaderOperations, ReaderThreadData } from "./reader-thread.js";
import { Scanner, type ScanRequest } from "./scan.js";

/** Where a page table is read: on its own thread, where the caller runs, or whichever keeps the caller waiting less. */
export type ReadingPlace = "thread" | "here" | "by-size";

/**
 * From this many entries on, a read goes to the thread. Below, it takes less than two milliseconds even where all is
 * dirty, and a request to a thread that has to wake takes a good part of one.
 */
const THREAD_FROM_ENTRIES = 2 ** 18;

/** Reads the page tables of one arena. */
export class DirtyReader implements AsyncDisposable {
  readonly #arena: Arena;
  readonly #place: ReadingPlace;
  readonly #here: Scanner;
  readonly #threadResult: number;
  #underWay = 0;
  #thread: { readonly worker: Worker; readonly client: RpcClient<ReaderOperations> } | undefined;

  /** @param results byte offsets of two result blocks: for this thread, and for the reader's */
  constructor(arena: Arena, results: readonly [number, number], place: ReadingPlace) {
    this.#arena = arena;
    this.#place = place;
    this.#here = new Scanner(arena, loadKernels(arena.memory), results[0]);
    this.#threadResult = results[1];
  }

  /**
   * See {@link Scanner.scan}.
   * @param tables that the page table consists of
   */
  async scan(format: PageTableFormat, request: ScanRequest, tables: number): Promise<number> {
    const large = Math.min(request.pages, tables * ENTRIES) >= THREAD_FROM_ENTRIES;
    if (this.#place === "here" || (this.#place === "by-size" && !large)) return this.#here.scan(format, request);
    const { worker, client } = this.#started();
    // Only a read under way keeps the process alive, not a thread that waits for the next.
    if (this.#underWay++ === 0) worker.ref();
    try {
      return await client.call("scan", { format: format.name, request });
    } finally {
      if (--this.#underWay === 0) worker.unref();
    }
  }

  #started(): { readonly worker: Worker; readonly client: RpcClient<ReaderOperations> } {
    if (this.#thread === undefined) {
      const workerData: ReaderThreadData = { tables: this.#arena.memory, result: this.#threadResult };
      const worker = new Worker(new URL("./reader-thread.js", import.meta.url), { workerData });
      this.#thread = { worker, client: new RpcClient(worker) };
    }
    return this.#thread;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#thread !== undefined) await endThread(this.#thread.worker, this.#thread.client);
  }
}
