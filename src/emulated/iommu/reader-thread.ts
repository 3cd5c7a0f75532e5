import { parentPort, workerData } from "node:worker_threads";
import type { IommuFormatName } from "../../host/description.js";
import { loadKernels } from "../../kernels/kernels.js";
import { openArena } from "../../memory/arena.js";
import { serve } from "../../threads/rpc.js";
import { FORMATS } from "./formats.js";
import { Scanner, type ScanRequest } from "./scan.js";

/*
 * The thread that reads large page tables, so that the main thread goes on meanwhile: a TiB mapped at 4 KiB takes a
 * quarter of a second.
 */

/** What the thread is started with. */
export interface ReaderThreadData {
  readonly tables: WebAssembly.Memory;
  /** Byte offset of its result block in `tables`. */
  readonly result: number;
}

/** What it does when asked. */
export type ReaderOperations = {
  scan: (argument: { format: IommuFormatName; request: ScanRequest }) => number;
};

if (parentPort !== null) {
  const { tables, result } = workerData as ReaderThreadData;
  const arena = openArena(tables);
  const scanner = new Scanner(arena, loadKernels(tables), result);
  const operations: ReaderOperations = {
    scan: ({ format, request }) => scanner.scan(FORMATS[format], request),
  };
  serve(parentPort, operations);
}
