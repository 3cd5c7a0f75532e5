import type { ErrnoName } from "../../src/uapi/errno.js";

/** The errno that a call is refused with. */
export async function errno(call: Promise<unknown>): Promise<ErrnoName | "none"> {
  return call.then(
    () => "none" as const,
    (error: { code: ErrnoName }) => error.code,
  );
}
