import { z } from "zod";
import { machineSchema, passthroughSchema } from "../../host/description.js";
import { machineShapeSchema } from "../../host/shape-schema.js";
import { MAX_CHANNELS } from "../data-plane.js";

/*
 * What source and destination say to each other on the control connection. A message is a checked JSON head and, for
 * three of them, bytes behind it (docs/stream.md). Page data never travels here: it has channels of its own.
 *
 *   source                                destination
 *   HELLO          ───────────────────▶   (checks the machine, builds it, opens its channels)
 *                  ◀───────────────────   ACCEPT, or REFUSE
 *   ROUND_BEGIN, (pages over the channels), ROUND_END            once per round
 *   DEVICE_STATE …, CHECK_STATE ────────▶   (devices take what there is, or refuse it)
 *                  ◀───────────────────   STATE_TAKEN: once per pre-copy round, while the source runs
 *   DEVICE_STATE …, VCPU_STATE, PREPARE ─▶
 *                  ◀───────────────────   READY: all loaded and verified
 *   (durably gives up)  GO ─────────────▶
 *                  ◀───────────────────   RUNNING, or RUN_FAILED: it may have run for a moment
 *                  ◀───────────────────   DIGESTS …, REPORT
 * If something else than Dirtmap moves the memory (HELLO's `mover`), there are no rounds and no DIGESTS. DIGESTS come right
 * after READY if HELLO says `verify: before`. Either side may say ABORT before GO; from the destination it means that the
 * machine is discarded, durably, and never ran, and it may answer GO. PING is the connection's own: both sides send it when they
 * have nothing to say.
 */

/**
 * Raised when messages change incompatibly. Every CONTROL frame carries its sender's version in its header, before
 * anything in it is read. Version 1 wrote 0 there.
 */
export const PROTOCOL_VERSION = 3;

/** Bytes of device state, or of a digest table, that one message may carry: the writer cuts longer ones. */
export const MAX_MESSAGE_DATA = 1 << 20;

const round = z.int().min(0).max(0xffffffff);
const count = z.int().min(0);
const text = z.string().max(4096);
const rootDigest = z.string().regex(/^[0-9a-f]{64}$/, "64 hexadecimal digits");
const problem = {
  code: z.string().max(64),
  message: text,
  remedy: text.optional(),
  /** The device that it is about, and what that says. */
  device: z.strictObject({ id: z.string().max(64), reason: text }).optional(),
};
const problemSchema = z.strictObject(problem);
/** What has gone wrong, as one side tells the other. */
export type Problem = z.output<typeof problemSchema>;

/** What HELLO says about who moves the memory. A destination where something else moves it refuses. */
const moverOffer = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("dirtmap"),
    /** The machine to build. Paths in it say how the source names things, and not what to open. */
    machine: z.union([machineSchema, passthroughSchema]),
    /** Page channels that will be opened. */
    channels: z.int().min(1).max(MAX_CHANNELS),
    /** When the page digests are compared: before GO, or after RUNNING, off the critical path. */
    verify: z.enum(["before", "after"]),
  }),
  /** QEMU's own migration stream moves memory and vCPUs, between QEMUs that the operators have started. */
  z.strictObject({ kind: z.literal("qemu") }),
]);

/** What ACCEPT says to that: of the same kind. */
const moverAnswer = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("dirtmap"),
    /** What each channel must show to be taken for this migration's: 32 bytes, hex. */
    token: z.string().regex(/^[0-9a-f]{64}$/, "32 bytes in hexadecimal"),
  }),
  z.strictObject({ kind: z.literal("qemu") }),
]);

/** Who moves the memory of a machine. */
export type MoverKind = z.output<typeof moverOffer>["kind"];
/** What HELLO says about a kind of mover. */
export type MoverOffer<Kind extends MoverKind = MoverKind> = Extract<z.output<typeof moverOffer>, { kind: Kind }>;
/** What ACCEPT answers a kind of mover. */
export type MoverAnswer<Kind extends MoverKind = MoverKind> = Extract<z.output<typeof moverAnswer>, { kind: Kind }>;

const heads = [
  z.strictObject({
    type: z.literal("HELLO"),
    protocol: z.int(),
    /** Name and version of the sending software, for messages. */
    software: z.string().max(128),
    /** The id that both journals are kept under. */
    migration: z.string().regex(/^[0-9a-z-]{1,64}$/, "lower-case letters, digits and '-', at most 64"),
    mover: moverOffer,
    /** What the guest can tell its machine by: the destination's must be the same. */
    shape: machineShapeSchema,
    /** How long the workload is to run on before the destination checks it and reports. */
    runAfterMs: z.int().min(0).max(86_400_000),
  }),
  z.strictObject({ type: z.literal("ACCEPT"), software: z.string().max(128), mover: moverAnswer }),
  z.strictObject({ type: z.literal("REFUSE"), ...problem }),
  z.strictObject({
    type: z.literal("ROUND_BEGIN"),
    round,
    phase: z.enum(["pre-copy", "stop-copy"]),
    pages: count,
  }),
  z.strictObject({ type: z.literal("ROUND_END"), round, pages: count, zeroPages: count, bytes: count }),
  z.strictObject({
    type: z.literal("DEVICE_STATE"),
    device: z.string().max(64),
    /** Counts a device's chunks from 0. */
    chunk: count,
    last: z.boolean(),
  }),
  /** Has every device taken what was sent of its state so far? */
  z.strictObject({ type: z.literal("CHECK_STATE"), round }),
  z.strictObject({ type: z.literal("STATE_TAKEN"), round }),
  /** State of the guest beside memory and devices: the vCPUs', or what an outside mover has to restore itself. */
  z.strictObject({ type: z.literal("VCPU_STATE") }),
  z.strictObject({
    type: z.literal("PREPARE"),
    /** The last round whose pages must be in memory; absent: there are no rounds. */
    round: round.optional(),
  }),
  z.strictObject({
    type: z.literal("READY"),
    /** SHA-256 over the destination's table of page digests: rootDigest() of verification.ts; absent: it has none. */
    rootDigest: rootDigest.optional(),
  }),
  z.strictObject({ type: z.literal("GO") }),
  z.strictObject({
    type: z.literal("RUNNING"),
    /** From the arrival of GO until everything ran. */
    resumeMs: z.number().min(0),
  }),
  z.strictObject({ type: z.literal("RUN_FAILED"), ...problem }),
  z.strictObject({
    type: z.literal("DIGESTS"),
    arena: z.int().min(0).max(4096),
    firstPage: count,
    /** The whole table has been sent. */
    last: z.boolean(),
  }),
  z.strictObject({
    type: z.literal("REPORT"),
    /** What the destination found; the receiver checks the fields that it uses. */
    report: z.record(z.string().max(64), z.unknown()),
  }),
  z.strictObject({ type: z.literal("ABORT"), ...problem }),
  z.strictObject({ type: z.literal("PING") }),
] as const;

/** Checks the JSON head of a control message. */
export const controlHeadSchema = z.discriminatedUnion("type", heads);

type Head = z.output<typeof controlHeadSchema>;

/** Messages that have bytes behind their head. */
export type BinaryMessageType = "DEVICE_STATE" | "VCPU_STATE" | "DIGESTS";

/** A message of the control connection. `data`: at most {@link MAX_MESSAGE_DATA} bytes. */
export type ControlMessage =
  | Exclude<Head, { type: BinaryMessageType }>
  | (Extract<Head, { type: BinaryMessageType }> & { readonly data: Uint8Array });

export type ControlMessageType = ControlMessage["type"];
export type ControlMessageOf<Type extends ControlMessageType> = Extract<ControlMessage, { type: Type }>;

/** True for a message type with bytes behind its head. */
export function isBinaryMessage(type: ControlMessageType): type is BinaryMessageType {
  return type === "DEVICE_STATE" || type === "VCPU_STATE" || type === "DIGESTS";
}
