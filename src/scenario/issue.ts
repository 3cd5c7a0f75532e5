import { z } from "zod";
import { suggest } from "../nearest.js";
import { formatSize } from "../observe/format.js";
import { safeText } from "../safe-text.js";
import { QUANTITIES } from "./quantities.js";

/** Characters of a value that are shown. */
const MAX_SHOWN = 80;

/** One finding of zod's, and the value and schema that it is about, as words for the author of a scenario. */
export function issueText(
  issue: z.core.$ZodIssue,
  root: unknown,
  schema: z.core.$ZodType,
): { path: readonly PropertyKey[]; text: string } {
  const { path } = issue;
  const found = valueAt(root, path);
  switch (issue.code) {
    case "unrecognized_keys": {
      const [key] = issue.keys;
      const known = fieldsAt(schema, root, path);
      return { path: [...path, key], text: `there is no such field; ${suggest(key, known)}` };
    }
    case "invalid_type":
      if (found === undefined || found === null)
        return { path, text: missing(issue.expected, schemaAt(schema, root, path)) };
      return { path, text: `must be ${article(issue.expected)}, not ${show(found)}` };
    case "invalid_value":
      return { path, text: notOneOf(found, issue.values.map(String)) };
    case "invalid_union":
      if (issue.discriminator === undefined || !("options" in issue)) break;
      return { path, text: notOneOf(found, (issue.options as unknown[]).map(String)) };
    case "too_small":
      return { path, text: `must be at least ${bound(path, issue.minimum)}, not ${show(found)}` };
    case "too_big":
      return { path, text: `must be at most ${bound(path, issue.maximum)}, not ${show(found)}` };
    case "invalid_format":
      return { path, text: `${show(found)} is not possible here: ${issue.message}` };
  }
  return { path, text: issue.message };
}

function notOneOf(found: unknown, allowed: readonly string[]): string {
  if (found === undefined) return `is missing; one of ${allowed.join(", ")} goes here`;
  return `${show(found)} is not known; ${suggest(String(found), allowed)}`;
}

function missing(expected: string, schema: z.core.$ZodType | undefined): string {
  const description = schema === undefined ? undefined : z.globalRegistry.get(schema)?.description;
  return `is missing; ${article(expected)} goes here${description === undefined ? "" : `: ${description}`}`;
}

function article(type: string): string {
  const names: Record<string, string> = { object: "a block of fields", array: "a list", int: "a whole number" };
  return names[type] ?? `a ${type}`;
}

function show(value: unknown): string {
  if (typeof value === "string") return `'${safeText(value, MAX_SHOWN)}'`;
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" && value !== null ? "a block of fields" : String(value);
}

/** Sizes of a page and more are written as sizes. */
function bound(path: readonly PropertyKey[], limit: number | bigint): string {
  return path.some((part) => QUANTITIES[String(part)] === "size") ? formatSize(Number(limit)) : String(limit);
}

function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, part) => (value as Record<PropertyKey, unknown> | undefined)?.[part], root);
}

/** The field names that a schema knows at a path; if a union decides by a field, those of the variant in `root`. */
function fieldsAt(schema: z.core.$ZodType, root: unknown, path: readonly PropertyKey[]): string[] {
  const at = schemaAt(schema, root, path);
  if (at === undefined) return [];
  const { def } = (variantOf(at, valueAt(root, path)) as z.core.$ZodTypes)._zod;
  return def.type === "object" ? Object.keys(def.shape) : [];
}

/** The schema of the value at a path; if a union decides by a field, that of the variant in `root`. */
function schemaAt(schema: z.core.$ZodType, root: unknown, path: readonly PropertyKey[]): z.core.$ZodType | undefined {
  let at: z.core.$ZodType | undefined = schema;
  let value = root;
  for (const part of path) {
    if (at === undefined) return undefined;
    const { def }: z.core.$ZodTypes["_zod"] = (variantOf(at, value) as z.core.$ZodTypes)._zod;
    at = def.type === "object" ? def.shape[String(part)] : def.type === "array" ? def.element : undefined;
    value = (value as Record<PropertyKey, unknown> | undefined)?.[part];
  }
  return at;
}

/** The schema inside defaults and options, and the variant of a discriminated union that `value` chooses. */
function variantOf(schema: z.core.$ZodType, value: unknown): z.core.$ZodType {
  const { def } = (schema as z.core.$ZodTypes)._zod;
  if (def.type === "default" || def.type === "prefault" || def.type === "optional")
    return variantOf(def.innerType, value);
  if (def.type !== "union" || !("discriminator" in def)) return schema;
  const field = String(def.discriminator);
  const chosen = (value as Record<string, unknown>)[field];
  const match = def.options.find((option) => option._zod.propValues?.[field]?.has(chosen as string));
  return match === undefined ? schema : variantOf(match, value);
}
