import koffi from "koffi";

/**
 * The address of a view's first byte in this process, for structures that carry pointers. It stays valid while the view's
 * buffer is alive: keep a reference until the kernel has let go of it.
 */
export function addressOf(view: ArrayBufferView): bigint {
  return koffi.address(view);
}
