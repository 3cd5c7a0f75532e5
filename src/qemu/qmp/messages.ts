import { z } from "zod";
import { DirtmapError } from "../../errors.js";
import { safeText } from "../../safe-text.js";
import type { QmpEvent } from "./monitor.js";

/*
 * What a QMP monitor says, a line each (QEMU's docs/interop/qmp-spec.rst): a greeting, answers to commands, events.
 */

/** Characters of an error of QEMU's, a command's or an event's name. */
const MAX_TEXT = 1000;
const MAX_NAME = 200;

const text = z.string().transform((value) => safeText(value, MAX_TEXT));
const name = z.string().transform((value) => safeText(value, MAX_NAME));

const greetingSchema = z.looseObject({ QMP: z.looseObject({ version: z.looseObject({}) }) });

const returned = z.looseObject({ return: z.unknown() });
const refused = z.looseObject({ error: z.looseObject({ class: name, desc: text }) });
const eventData = z.record(z.string(), z.unknown());

const messageSchema = z.union([
  returned.extend({ id: z.int() }).transform(({ return: value, id }) => {
    return { kind: "answer" as const, id, value };
  }),
  refused.extend({ id: z.int().optional() }).transform(({ error, id }) => {
    return { kind: "refusal" as const, id, qemuClass: error.class, reason: error.desc };
  }),
  z
    .looseObject({
      event: name,
      data: eventData.default({}),
      timestamp: z.looseObject({ seconds: z.number(), microseconds: z.number() }),
    })
    .transform(({ event, data, timestamp: { seconds, microseconds } }) => {
      return { kind: "event" as const, event: { name: event, data, at: seconds * 1000 + microseconds / 1000 } };
    }),
]);

/** An answer whose id is another's: libvirt numbers the commands that it passes on itself. */
const passedOnSchema = z.union([
  returned.transform(({ return: value }) => ({ kind: "answer" as const, value })),
  refused.transform(({ error }) => ({ kind: "refusal" as const, qemuClass: error.class, reason: error.desc })),
]);

/** `event STOP at 1795828338.093027 for domain 'NAME': DATA`, as virsh prints an event. */
const VIRSH_EVENT = /^event ([A-Z][A-Z0-9_-]{0,199}) at (\d{1,12})\.(\d{6}) for domain '/;

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

/** An answer that libvirt passed on. @throws DirtmapError `QMP_PROTOCOL` */
export function readPassedOn(line: string, monitor: string): z.output<typeof passedOnSchema> {
  return parsed(passedOnSchema, line, monitor, LIBVIRT_REMEDY);
}

/** An event that `virsh qemu-monitor-event` printed of this domain. @throws DirtmapError `QMP_PROTOCOL` */
export function readVirshEvent(line: string, domain: string): QmpEvent {
  const [start, event, seconds, microseconds] = VIRSH_EVENT.exec(line) ?? [];
  const named = `${domain}': `;
  if (start === undefined || !line.startsWith(named, start.length)) {
    throw notQmp(line, `virsh, asked for events of ${domain},`, LIBVIRT_REMEDY);
  }
  const text = line.slice(start.length + named.length);
  const data = text === "<null>" ? {} : parsed(eventData, text, `an event of ${domain}`, LIBVIRT_REMEDY);
  return { name: event, data, at: Number(seconds) * 1000 + Number(microseconds) / 1000 };
}

const SOCKET_REMEDY = "give the socket of QEMU's QMP monitor: -qmp unix:PATH,server=on,wait=off";
const LIBVIRT_REMEDY = "see whether `virsh qemu-monitor-command` works; this was tried with libvirt 12.9";

function parsed<Schema extends z.ZodType>(
  schema: Schema,
  line: string,
  monitor: string,
  remedy = SOCKET_REMEDY,
): z.output<Schema> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    // The schema has its own words for it.
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw notQmp(line, monitor, remedy);
}

function notQmp(line: string, monitor: string, remedy: string): DirtmapError {
  return new DirtmapError(`${monitor} does not speak QMP: it said '${safeText(line, 80)}'`, {
    code: "QMP_PROTOCOL",
    remedy,
  });
}
