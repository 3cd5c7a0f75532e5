import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import type { Fields, Struct, Values } from "../../uapi/struct.js";

/** A client's mistake: the errno that it is answered, and a line for the server's log. */
export function refusal(code: ErrnoName, syscall: string, attempted: string, remedy?: string): UapiError {
  return new UapiError(code, { syscall, attempted, remedy });
}

/** The structure at a request's start. @throws UapiError EINVAL for a request that ends before it does */
export function requestOf<Of extends Fields>(layout: Struct<Of>, payload: Uint8Array, syscall: string): Values<Of> {
  if (payload.byteLength < layout.size) {
    throw refusal("EINVAL", syscall, `read a request of ${payload.byteLength} bytes`, `send ${layout.size} or more`);
  }
  return layout.decode(payload);
}

/**
 * The structure at the start of a request, of which `argsz` says how much room the client has for the reply.
 * @throws UapiError EINVAL also where that is less than the structure
 */
export function sizedRequestOf<Of extends Fields & { readonly argsz: "u32" }>(
  layout: Struct<Of>,
  payload: Uint8Array,
  syscall: string,
): Values<Of> {
  const request = requestOf(layout, payload, syscall);
  const argsz = (request as { readonly argsz: number }).argsz;
  if (argsz < layout.size)
    throw refusal("EINVAL", syscall, `answer into ${argsz} bytes`, `give ${layout.size} or more`);
  return request;
}
