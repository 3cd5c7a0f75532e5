import { z } from "zod";
import { MAX_REGIONS } from "./device-info.js";
import { PCI_SHAPE_BYTES } from "./pci-shape.js";
import { SHAPE_VERSION } from "./shape.js";

/*
 * What another process may say of a shape. Apart from shape.ts, so that only who reads shapes loads zod.
 */

const MAX_FACTS = 32;

const name = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$/, "letters, digits, blanks, '.', '_' and '-', at most 64");
const index = z.int().min(0).max(0xffff);
const bytes = z.int().min(0);

/** A fact: a number, a short text, or a size, which people are shown as one. */
const fact = z.union([
  z.number(),
  z.string().regex(/^[ -~]{0,128}$/, "printable ASCII, at most 128"),
  z.strictObject({ bytes }),
]);

/** Checks what is said of one device. */
export const deviceShapeSchema = z.strictObject({
  version: z.literal(SHAPE_VERSION),
  /** The model or kernel driver, which its state is of. */
  model: name,
  /** Of the state's layout; null: only its driver or server knows. */
  stateVersion: z.int().min(0).nullable(),
  regions: z
    .array(z.strictObject({ index, name, bytes, readable: z.boolean(), writeable: z.boolean() }))
    .max(MAX_REGIONS),
  irqs: z.array(z.strictObject({ index, name, count: z.int().min(0) })).max(MAX_REGIONS),
  /** The configuration space in hexadecimal, with all that is state set to zero; null: it is no PCI function. */
  config: z
    .string()
    .regex(/^([0-9a-f]{2})*$/, "bytes in hexadecimal")
    .max(2 * PCI_SHAPE_BYTES)
    .nullable(),
  /** What the model alone knows, such as a disk's capacity. */
  facts: z.record(name, fact).refine((facts) => Object.keys(facts).length <= MAX_FACTS, `at most ${MAX_FACTS} facts`),
});

/** Checks what is said of a machine. */
export const machineShapeSchema = z.strictObject({
  memory: z
    .array(z.strictObject({ firstPage: z.int().min(0), pages: z.int().min(1), writeable: z.boolean() }))
    .max(4096),
  vcpus: z.int().min(0).max(4096),
  devices: z.array(z.strictObject({ id: name, shape: deviceShapeSchema })).max(256),
});
