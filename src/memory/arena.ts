import "./webassembly.js";
import { UsageError } from "../errors.js";
import { GiB } from "./address.js";

/** WebAssembly counts memory in pages of 64 KiB; 65536 of them, 4 GiB, are the most that Node 20 allows. */
const WASM_PAGE = 65536;
const ARENA_LIMIT = 4 * GiB;

/**
 * A piece of shared memory that WebAssembly kernels and every thread work on in place. It is a shared WebAssembly.Memory:
 * address space is reserved at once, and the system commits a page when it is first written.
 */
export interface Arena {
  /** The memory, which can be posted to a worker; the worker calls {@link openArena} on it. */
  readonly memory: WebAssembly.Memory;
  readonly bytes: number;
  readonly u8: Uint8Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
  readonly u32: Uint32Array<SharedArrayBuffer>;
}

/**
 * Reserves an arena of at least `bytes` (rounded up to 64 KiB), all zero.
 * @throws UsageError `MEMORY_DOES_NOT_FIT` above 4 GiB, or if the system has no address space left
 */
export function createArena(bytes: number): Arena {
  if (!(bytes > 0 && bytes <= ARENA_LIMIT)) {
    throw new UsageError(`an arena of ${bytes} bytes can't be made`, {
      code: "MEMORY_DOES_NOT_FIT",
      remedy: "an arena holds up to 4 GiB",
    });
  }
  const pages = Math.ceil(bytes / WASM_PAGE);
  try {
    return openArena(new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }));
  } catch (cause) {
    throw new UsageError(`no address space for an arena of ${bytes} bytes`, { code: "MEMORY_DOES_NOT_FIT", cause });
  }
}

/** The views of an arena whose memory was created here or in another thread. */
export function openArena(memory: WebAssembly.Memory): Arena {
  const buffer = memory.buffer as unknown as SharedArrayBuffer;
  return {
    memory,
    bytes: buffer.byteLength,
    u8: new Uint8Array(buffer),
    i32: new Int32Array(buffer),
    u32: new Uint32Array(buffer),
  };
}
