import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
let koffi: typeof import("koffi") | undefined;

/**
 * The address of a view's first byte in this process, for structures that carry pointers. It stays valid while the view's
 * buffer is alive: keep a reference until the kernel has let go of it.
 */
export function addressOf(view: ArrayBufferView): bigint {
  // At the first call and not before: threads of devices import bitmaps and make none, and loading takes 10 ms.
  koffi ??= require("koffi") as typeof import("koffi");
  return koffi.address(view);
}
