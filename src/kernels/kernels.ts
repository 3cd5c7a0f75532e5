import { readFileSync } from "node:fs";
import "../memory/webassembly.js";
import type { PageKernels } from "./pages.js";

/** What kernels.wasm exports. */
export type Kernels = PageKernels;

let compiled: WebAssembly.Module | undefined;

/**
 * The kernels, working in place on an arena. The module is compiled once per thread; it has no data of its own, so
 * instantiating it leaves the arena as it is.
 */
export function loadKernels(memory: WebAssembly.Memory): Kernels {
  compiled ??= new WebAssembly.Module(readFileSync(new URL("./kernels.wasm", import.meta.url)));
  return new WebAssembly.Instance(compiled, { env: { memory } }).exports as unknown as Kernels;
}
