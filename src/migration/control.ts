import { DirtmapError } from "../errors.js";
import type { ControlConnection } from "./stream/control-connection.js";
import type { ControlMessageOf, ControlMessageType } from "./stream/messages.js";

/** What source and destination need of a control connection. It keeps itself alive, and notices when it is lost. */
export type Control = Pick<ControlConnection, "lost" | "send" | "receive" | "close">;

/** The longest that a timer can wait (2^31 - 1 ms, 24 days): for waits that the connection's own silence bounds. */
export const UNTIL_LOST = 2 ** 31 - 1;

/**
 * The next message, which must be of one of these types.
 * @throws DirtmapError `TIMED_OUT`, `UNEXPECTED_MESSAGE`, or the connection's; the signal's reason
 */
export async function expectMessage<Type extends ControlMessageType>(
  control: Control,
  types: readonly Type[],
  ms: number,
  signal?: AbortSignal,
): Promise<ControlMessageOf<Type>> {
  const message = await control.receive({ deadlineMs: ms, signal }).catch((cause: unknown) => {
    if (!(cause instanceof DirtmapError) || cause.code !== "TIMED_OUT") throw cause;
    throw new DirtmapError(`${types.join(" or ")} did not come within ${ms} ms`, { code: "TIMED_OUT", cause });
  });
  if (!types.some((type) => type === message.type)) {
    throw new DirtmapError(`${message.type} arrived where ${types.join(" or ")} was due`, {
      code: "UNEXPECTED_MESSAGE",
      remedy: "use the same version on both sides",
    });
  }
  return message as ControlMessageOf<Type>;
}

/** True for the error of a connection whose other side said ABORT. */
export function isPeerAbort(error: unknown): boolean {
  return error instanceof DirtmapError && error.code === "PEER_ABORTED";
}
