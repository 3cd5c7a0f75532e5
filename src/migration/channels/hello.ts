import { timingSafeEqual } from "node:crypto";
import { z } from "zod";
import { versionMismatch } from "../../version-mismatch.js";
import { MAX_CHANNELS } from "../data-plane.js";
import { frameRefused } from "../stream/frame.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";

/*
 * The JSON bodies of a channel's frames other than PAGES.
 */

const count = z.int().min(0);

/** CHANNEL_HELLO: the first frame of a channel. */
const helloSchema = z.strictObject({
  protocol: z.int(),
  token: z.string().regex(/^[0-9a-f]{64}$/),
  channel: z.int().min(1).max(MAX_CHANNELS),
  /** Pages of RAM of each arena: both sides must mean the same memory by a page number. */
  arenas: z.array(z.int().min(1)).max(4096),
});

/** ROUND_END and its answer, ROUND_ACK: what the channel carried in the round, and what of it was stored and verified. */
const roundTotalsSchema = z.strictObject({ pages: count, zeroPages: count });

/** REFUSED: why the destination ends the channel. */
const refusalSchema = z.strictObject({
  code: z.string().max(64),
  message: z.string().max(1024),
  remedy: z.string().max(1024).optional(),
});

export type ChannelHello = z.output<typeof helloSchema>;
export type RoundTotals = z.output<typeof roundTotalsSchema>;
export type Refusal = z.output<typeof refusalSchema>;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

export function encodeBody(value: ChannelHello | RoundTotals | Refusal): Uint8Array {
  return encoder.encode(JSON.stringify(value));
}

function decodeBody<T>(schema: z.ZodType<T>, body: Uint8Array): T {
  let json: unknown;
  try {
    // A copy, since TextDecoder refuses views of shared memory.
    json = JSON.parse(decoder.decode(Uint8Array.from(body)));
  } catch (cause) {
    throw frameRefused("a frame's body is no JSON", cause);
  }
  const checked = schema.safeParse(json);
  if (!checked.success) throw frameRefused("a frame's body is malformed", checked.error);
  return checked.data;
}

export const decodeRoundTotals = (body: Uint8Array): RoundTotals => decodeBody(roundTotalsSchema, body);
export const decodeRefusal = (body: Uint8Array): Refusal => decodeBody(refusalSchema, body);

/** What a channel's hello must say. */
export interface ExpectedHello {
  readonly token: string;
  /** How many channels HELLO announced. */
  readonly channels: number;
  readonly arenas: readonly number[];
}

/**
 * The hello in a frame's body, if it belongs to the migration whose token it must show. The comparison takes the same
 * time whatever the token is.
 * @throws DirtmapError `FRAME_REFUSED`, `INCOMPATIBLE`
 */
export function checkHello(body: Uint8Array, expected: ExpectedHello): ChannelHello {
  const hello = decodeBody(helloSchema, body);
  if (!timingSafeEqual(Buffer.from(hello.token, "hex"), Buffer.from(expected.token, "hex"))) {
    throw frameRefused("a channel doesn't belong to this migration");
  }
  if (hello.protocol !== PROTOCOL_VERSION) {
    const versions = { theirs: hello.protocol, ours: PROTOCOL_VERSION };
    throw versionMismatch({
      what: "the migration protocol",
      other: "the source",
      here: "the destination",
      ...versions,
    });
  }
  const { arenas, channels } = expected;
  if (hello.channel > channels) throw frameRefused(`channel ${hello.channel} of ${channels}`);
  if (hello.arenas.length !== arenas.length || hello.arenas.some((pages, i) => pages !== arenas[i])) {
    throw frameRefused("the source's memory is laid out in another way");
  }
  return hello;
}
