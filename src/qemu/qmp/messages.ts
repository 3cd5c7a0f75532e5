import { z } from "zod";
import { DirtmapError } from "../../errors.js";
import { safeText } from "../../safe-text.js";

/*
 * What a QMP monitor says, a line each (QEMU's docs/interop/qmp-spec.rst): a greeting, answers to commands, events.
 */

/** Characters of an error of QEMU's, a command's or an event's name. */
const MAX_TEXT = 1000;
const MAX_NAME = 200;

const text = z.string().transform((value) => safeText(value, MAX_TEXT));
const name = z.string().transform((value) => safeText(value, MAX_NAME));

/** A client may give any JSON; an earlier client of the monitor may have. */
const id = z.union([z.string(), z.number(), z.null()]);

const greetingSchema = z.looseObject({ QMP: z.looseObject({ version: z.looseObject({}) }) });

const messageSchema = z.union([
  z.looseObject({ return: z.unknown(), id }).transform(({ return: value, id }) => {
    return { kind: "answer" as const, id, value };
  }),
  z.looseObject({ error: z.looseObject({ class: name, desc: text }), id: id.optional() }).transform(({ error, id }) => {
    return { kind: "refusal" as const, id, qemuClass: error.class, reason: error.desc };
  }),
  z
    .looseObject({
      event: name,
      data: z.record(z.string(), z.unknown()).default({}),
      timestamp: z.looseObject({ seconds: z.number(), microseconds: z.number() }),
    })
    .transform(({ event, data, timestamp: { seconds, microseconds } }) => {
      return { kind: "event" as const, event: { name: event, data, at: seconds * 1000 + microseconds / 1000 } };
    }),
]);

export type QmpMessage = z.output<typeof messageSchema>;

/** @throws DirtmapError `QMP_PROTOCOL` */
export function checkGreeting(line: string, monitor: string): void {
  if (/^QEMU [\d.]+ monitor/.test(line)) {
    throw new DirtmapError(`${monitor} is a monitor for people (HMP)`, {
      code: "QMP_PROTOCOL",
      remedy: "give the socket of a QMP monitor: -qmp unix:PATH,server=on,wait=off",
    });
  }
  parsed(greetingSchema, line, monitor);
}

/** @throws DirtmapError `QMP_PROTOCOL` */
export function readMessage(line: string, monitor: string): QmpMessage {
  return parsed(messageSchema, line, monitor);
}

function parsed<Schema extends z.ZodType>(schema: Schema, line: string, monitor: string): z.output<Schema> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    // The schema has its own words for it.
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new DirtmapError(`${monitor} does not speak QMP: it said '${safeText(line, 80)}'`, {
    code: "QMP_PROTOCOL",
    remedy: "give the socket of QEMU's QMP monitor: -qmp unix:PATH,server=on,wait=off",
  });
}
