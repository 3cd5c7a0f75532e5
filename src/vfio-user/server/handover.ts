import type { HandoverNotice } from "../../host/host.js";
import { DIRTMAP_HANDOVER, dirtmap_handover } from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import type { Custody, Mover } from "./custody.js";
import { refusal, sizedRequestOf } from "./refusal.js";

/** A migration's id, as journals have it; it is printed. */
const MIGRATION_ID = /^[0-9a-z-]{1,64}$/;

/** DIRTMAP_COMMAND.HANDOVER. @throws UapiError EINVAL also where {@link Custody.announce} refuses it */
export function announceHandover({ payload }: Message, custody: Custody, user: Mover): Uint8Array {
  const { argsz, notice: number } = sizedRequestOf(dirtmap_handover, payload, "handover");
  const refuse = (remedy: string) => refusal("EINVAL", "handover", `note a handover of kind ${number}`, remedy);
  const notices = Object.keys(DIRTMAP_HANDOVER) as HandoverNotice[];
  const notice = notices.find((name) => DIRTMAP_HANDOVER[name] === number);
  if (notice === undefined) throw refuse("there is no such kind");
  if (argsz !== payload.byteLength) throw refuse("give the message's size as argsz");
  const migration = Buffer.from(payload.subarray(dirtmap_handover.size)).toString("latin1");
  if (!MIGRATION_ID.test(migration)) throw refuse("give the migration's id: 1 to 64 digits, small letters and '-'");
  custody.announce(user, notice, migration);
  return dirtmap_handover.encode({ argsz: dirtmap_handover.size, notice: number });
}
