import { DirtmapError, UsageError } from "../errors.js";
import { type MachineShape, shapeDifferences } from "../host/shape.js";
import type { Peer } from "./peer.js";
import { SOFTWARE } from "./software.js";
import {
  type ControlMessageOf,
  type MoverAnswer,
  type MoverKind,
  type MoverOffer,
  PROTOCOL_VERSION,
} from "./stream/messages.js";

/*
 * What the two sides agree on before anything is touched: the protocol, who moves the memory, and what the guest will find.
 */

/** Who moves the memory, in a sentence. */
const MOVER_NAMES: Readonly<Record<MoverKind, string>> = { dirtmap: "Dirtmap", qemu: "QEMU" };

/**
 * Offers a machine to the destination, and returns what it answers.
 * @param args.destination its address, for messages
 * @throws UsageError with the destination's words, if it refuses
 */
export async function agree<Kind extends MoverKind>(
  peer: Peer,
  args: {
    readonly destination: string;
    readonly migration: string;
    readonly offer: MoverOffer<Kind>;
    readonly shape: MachineShape;
    readonly runAfterMs: number;
    readonly acceptMs: number;
    readonly signal: AbortSignal;
  },
): Promise<MoverAnswer<Kind>> {
  const { migration, offer, shape, runAfterMs } = args;
  const hello = peer.send({
    type: "HELLO",
    protocol: PROTOCOL_VERSION,
    software: SOFTWARE,
    migration,
    mover: offer,
    shape,
    runAfterMs,
  });
  await hello.catch((error: unknown) => {
    // A destination that refused before it was asked has said why.
    if (!peer.lost.aborted) throw error;
  });
  const answer = await peer.expect(["ACCEPT", "REFUSE"], args.acceptMs, args.signal);
  if (answer.type === "REFUSE") {
    throw new UsageError(`${args.destination} refuses the migration: ${answer.message}`, {
      code: answer.code,
      remedy: answer.remedy,
    });
  }
  if (answer.mover.kind !== offer.kind) throw otherMover(offer.kind, answer.mover.kind);
  return answer.mover as MoverAnswer<Kind>;
}

/**
 * What a source offers, if this side can take it from its mover.
 * @throws DirtmapError `INCOMPATIBLE`
 */
export function checkHello<Kind extends MoverKind>(
  { protocol, software, mover }: ControlMessageOf<"HELLO">,
  kind: Kind,
): MoverOffer<Kind> {
  if (protocol !== PROTOCOL_VERSION) {
    throw new DirtmapError(
      `it speaks protocol ${protocol} (${software}), and this is ${PROTOCOL_VERSION} (${SOFTWARE})`,
      {
        code: "INCOMPATIBLE",
        remedy: "use the same version on both sides",
      },
    );
  }
  if (mover.kind !== kind) throw otherMover(mover.kind, kind);
  return mover as MoverOffer<Kind>;
}

function otherMover(source: MoverKind, destination: MoverKind): DirtmapError {
  return new DirtmapError(
    `at the source ${MOVER_NAMES[source]} moves the memory, and at the destination ${MOVER_NAMES[destination]}`,
    {
      code: "INCOMPATIBLE",
      remedy: `have ${MOVER_NAMES[source]} move it on both sides, or ${MOVER_NAMES[destination]}`,
    },
  );
}

/** @throws DirtmapError `OTHER_HARDWARE` if the guest would find another machine at the destination */
export function checkShape(source: MachineShape, destination: MachineShape): void {
  const [first, ...others] = shapeDifferences(source, destination);
  if (first === undefined) return;
  const more = others.length === 0 ? "" : ` (and ${others.length} more difference${others.length === 1 ? "" : "s"})`;
  throw new DirtmapError(`${first}${more}`, {
    code: "OTHER_HARDWARE",
    attempted: "compare the destination's machine with the source's",
    remedy: "give the destination what the source has",
  });
}
