import { DirtmapError } from "./errors.js";

/**
 * What is told where two versions of Dirtmap meet and don't understand each other. It reads the same on both sides.
 * @param args.what has the version: "the migration protocol"
 * @param args.other the other side, `theirs` its version; as a noun phrase: "the source"
 * @param args.here this side, `ours` its version
 */
export function versionMismatch(args: {
  readonly what: string;
  readonly other: string;
  readonly here: string;
  readonly theirs: number;
  readonly ours: number;
}): DirtmapError {
  const { what, other, here, theirs, ours } = args;
  return new DirtmapError(`${other} speaks version ${theirs} of ${what}, and ${here} version ${ours}`, {
    code: "INCOMPATIBLE",
    attempted: `talk to ${other}`,
    remedy: `upgrade Dirtmap at ${theirs < ours ? other : here}`,
  });
}
