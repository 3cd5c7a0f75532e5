import { DIRTMAP_PROTOCOL } from "../uapi/vfio-user.js";

/** A side of a vfio-user connection. */
type Side = "client" | "server";

/**
 * What is wrong with the version of Dirtmap's own commands that the peer speaks, and which side is the older one. Null: it
 * is the one spoken here.
 */
export function versionMismatch(theirs: number, peer: Side, here: Side): { problem: string; remedy: string } | null {
  if (theirs === DIRTMAP_PROTOCOL) return null;
  return {
    problem: `the ${peer} speaks version ${theirs} of Dirtmap's own commands, and this ${here} speaks version ${DIRTMAP_PROTOCOL}`,
    remedy: `upgrade the ${theirs < DIRTMAP_PROTOCOL ? peer : here}`,
  };
}
