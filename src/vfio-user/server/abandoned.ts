import { explain } from "../../errors.js";
import type { MigState } from "../../uapi/vfio.js";
import { whatToDo } from "../stays.js";
import type { Custody, Mover } from "./custody.js";

/** A device that a connection may leave in the middle of a migration. */
export interface Leavable {
  readonly id: string;
  /** Of its server, for messages. */
  readonly socket: string;
  readonly custody: Custody;
  /** Back to RUNNING, by the arcs of the state machine. */
  run(): Promise<unknown>;
  reset(): Promise<void>;
}

/**
 * A connection is over, with the device in `state`: does what {@link Custody.leave} says. Returns a line for the log; null: the
 * connection had no part in a migration. Does not throw.
 */
export async function settleAbandoned(device: Leavable, user: Mover, state: MigState): Promise<string | null> {
  const { id, socket, custody } = device;
  const abandoned = custody.leave(user, state);
  if (abandoned.what === "nothing") return null;
  const left = `${user.name} has gone and left '${id}' in ${state}`;
  try {
    if (abandoned.what === "stay") {
      const migration = custody.report?.migration ?? null;
      return `${left}, where it stays; ${whatToDo(abandoned.stays, { socket, migration })}`;
    }
    if (abandoned.what === "reset") await device.reset();
    else await device.run();
    custody.clear();
    return `${left}: ${abandoned.what === "reset" ? "it is reset, since its state is another's" : "it runs again"}`;
  } catch (error) {
    return `${left}, and it can't be brought back: ${explain(error)}`;
  }
}
