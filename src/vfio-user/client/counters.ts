import { z } from "zod";
import { deviceShapeSchema } from "../../host/shape-schema.js";
import { safeText } from "../../safe-text.js";
import { UapiError } from "../../uapi/errno.js";
import { DIRTMAP_COMMAND, dirtmap_counters } from "../../uapi/vfio-user.js";
import { versionMismatch } from "../../version-mismatch.js";
import { STAYS } from "../stays.js";
import type { Connection } from "./connection.js";

const NAME = "counters";

/** Room for the answer: what a device has counted is a page of text. */
const ROOM_BYTES = 65536;

/** What this client understands; the server has its own number (../server/counters.ts). */
const SCHEMA_VERSION = 1;
const versionSchema = z.looseObject({ schemaVersion: z.int() });

/** Characters of what a server says of its device: it is shown. */
const MAX_PROBLEM = 1000;

const count = z.int().min(0);

/** What {@link readCounters} takes from the answer (docs/vfio-user.md); more may be there. */
const schema = z.looseObject({
  schemaVersion: z.literal(SCHEMA_VERSION),
  id: z.string().max(256),
  model: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
  state: z.string().nullable(),
  failure: z.string().nullable(),
  busMaster: z.boolean(),
  tracking: z.looseObject({ tracksInternally: z.boolean(), tracksThroughContainer: z.boolean() }),
  dmaLogging: z
    .looseObject({
      pageSizes: z.array(z.int().min(1)).min(1).max(64),
      maxRanges: z.int().min(1).max(65536),
      addressWidth: z.int().min(1).max(64),
      readableWhen: z.enum(["always", "quiesced"]),
    })
    .nullable(),
  migration: z
    .looseObject({
      movedBy: z.string().max(256),
      connected: z.boolean(),
      loaded: z.boolean(),
      notice: z.enum(["committing", "gone"]).nullable(),
      migration: z
        .string()
        .regex(/^[0-9a-z-]{1,64}$/)
        .nullable(),
      stays: z.enum(STAYS).nullable(),
    })
    .nullable(),
  log: z.looseObject({ granule: z.int().min(1), startedBy: z.string() }).nullable(),
  /** Absent of a server of an older version: its device's writes can't be switched. */
  writePath: z
    .looseObject({
      path: z.enum(["direct", "messages"]),
      chosenBy: z.string().max(256).nullable(),
      /** Absent of Dirtmap's own servers, whose device can take both. */
      possible: z.array(z.enum(["direct", "messages"])).optional(),
    })
    .optional(),
  /** What the device can write; null where that is in too many places to be told. Absent of a server of an older version. */
  mapped: z
    .array(
      z.looseObject({
        iova: z
          .string()
          .regex(/^0x[0-9a-f]{1,16}$/)
          .transform(BigInt),
        bytes: count,
      }),
    )
    .max(256)
    .nullable()
    .optional(),
  /** Absent of a server of an older version. */
  waitsForState: z.boolean().optional(),
  dma: z.looseObject({ bytesWritten: count }).optional(),
  /** Absent of a server of an older version. */
  shape: z
    .looseObject({ stateVersion: deviceShapeSchema.shape.stateVersion, facts: deviceShapeSchema.shape.facts })
    .optional(),
  /** Why it is in ERROR, or refuses the state that it is given. Absent of a server of an older version. */
  problem: z
    .string()
    .transform((text) => safeText(text, MAX_PROBLEM))
    .nullable()
    .optional(),
  device: z.record(z.string(), z.number()),
  trail: z
    .looseObject({
      writer: z.string(),
      spans: z.array(z.looseObject({ firstPage: count, pages: count })).max(65536),
      blockSlots: count,
      lastSequence: count,
      epochs: z.array(z.looseObject({ incarnation: count, firstSequence: count })).max(64),
    })
    .nullable(),
});

/** The facts that Dirtmap's own server tells about its device (docs/vfio-user.md). */
export type ServerCounters = z.output<typeof schema>;

/**
 * DIRTMAP_COMMAND.COUNTERS; null where the server is someone else's, which knows no such command.
 * @throws UapiError EPROTO for an answer that can't be understood; EPROTONOSUPPORT for a server of Dirtmap's from before it
 * named the version of its own commands; of the connection
 */
export async function readCounters(connection: Connection): Promise<ServerCounters | null> {
  let answer: Uint8Array;
  try {
    answer = await connection.call(DIRTMAP_COMMAND.COUNTERS, NAME, dirtmap_counters.encode({ argsz: ROOM_BYTES }));
  } catch (error) {
    if (connection.failure !== undefined || !(error instanceof UapiError)) throw error;
    return null;
  }
  if (!connection.agreement.dirtmap) {
    throw new UapiError("EPROTONOSUPPORT", {
      syscall: NAME,
      attempted: `use the server at ${connection.path}, which speaks Dirtmap's own commands and names no version of them`,
      remedy: "upgrade the server",
    });
  }
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(answer.subarray(dirtmap_counters.size));
    const counters: unknown = JSON.parse(text.replace(/\0+$/, ""));
    checkVersion(counters);
    return schema.parse(counters);
  } catch (cause) {
    if (cause instanceof UapiError) throw cause;
    throw new UapiError("EPROTO", { syscall: NAME, attempted: "read the server's counters", cause });
  }
}

/** @throws UapiError EPROTONOSUPPORT for another version's, with which side to upgrade */
function checkVersion(counters: unknown): void {
  const { schemaVersion: theirs } = versionSchema.parse(counters);
  if (theirs === SCHEMA_VERSION) return;
  const sides = { what: "the counters", other: "the server", here: "the client" };
  const { message, remedy } = versionMismatch({ ...sides, theirs, ours: SCHEMA_VERSION });
  throw new UapiError("EPROTONOSUPPORT", {
    syscall: NAME,
    attempted: `read the server's counters: ${message}`,
    remedy,
  });
}
