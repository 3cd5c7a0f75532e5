import { z } from "zod";
import { formatSize } from "../../src/observe/format.js";
import { QUANTITIES } from "../../src/scenario/quantities.js";
import { scenarioSchema } from "../../src/scenario/scenario.js";

/*
 * The tables of docs/scenarios.md: every field of a scenario, from the schema that checks it. A field's text, range and default
 * have no other home.
 */

/** The part of JSON Schema that zod makes of the scenario's schema, and `unit`, which the schema adds. */
interface Field {
  readonly type?: string;
  readonly title?: string;
  readonly description?: string;
  readonly unit?: string;
  readonly default?: unknown;
  readonly enum?: readonly string[];
  readonly const?: string;
  readonly anyOf?: readonly Field[];
  readonly oneOf?: readonly Field[];
  readonly items?: Field;
  readonly additionalProperties?: Field | false;
  readonly properties?: Readonly<Record<string, Field>>;
  readonly required?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly maxItems?: number;
  readonly pattern?: string;
}

type Row = readonly [name: string, text: string, type: string, range: string, byDefault: string];

const HEAD: Row = ["Field", "What it is", "Type and unit", "Range", "Default"];
const NONE = "-";

/** The reference in Markdown: a section for each block of a scenario, and for each model what only that model has. */
export function scenarioReference(): string {
  const scenario = z.toJSONSchema(scenarioSchema, { io: "input" }) as Field;
  const { machine, migration } = propertiesOf(scenario);
  const { iommus, devices, ...ofMachine } = propertiesOf(machine);
  const models = devices.items?.oneOf ?? [];
  const common = commonFields(models);
  return [
    section("The file", rowsOf(scenario, ["summary"]), blocks(scenario)),
    section("`machine`", rowsOf(machine, Object.keys(ofMachine)), lists({ iommus, devices })),
    section("Each of `machine.iommus`", rowsOf(iommus.items ?? {})),
    section("Each of `machine.devices`", [modelRow(models), ...rowsOf(models[0], common)]),
    ...models.map((model) => modelSection(model, common)),
    section("`migration`", rowsOf(migration)),
  ].join("\n\n");
}

function section(title: string, rows: readonly Row[], more: readonly Row[] = []): string {
  return `## ${title}\n\n${tableOf([...rows, ...more])}`;
}

/** What a model has besides the fields of all. */
function modelSection(model: Field, common: readonly string[]): string {
  const name = propertiesOf(model).model.const;
  const own = Object.keys(propertiesOf(model)).filter((field) => field !== "model" && !common.includes(field));
  const text = `### \`model: ${name}\`\n\n${sentence(model.description ?? "")}`;
  return own.length === 0 ? `${text} It has no further fields.` : `${text}\n\n${tableOf(rowsOf(model, own))}`;
}

/** Fields that all models have, and describe alike. */
function commonFields(models: readonly Field[]): string[] {
  return Object.entries(propertiesOf(models[0]))
    .filter(
      ([name, field]) =>
        models.filter((model) => propertiesOf(model)[name]?.description === field.description).length >=
        models.length - 1,
    )
    .map(([name]) => name)
    .filter((name) => name !== "model");
}

function modelRow(models: readonly Field[]): Row {
  const names = models.map((model) => `\`${propertiesOf(model).model.const}\``);
  return ["`model`", "model of the device, see below", "text", names.join(", "), "required"];
}

/** The fields of the top that have a section of their own. */
function blocks(scenario: Field): Row[] {
  const { machine, migration } = propertiesOf(scenario);
  return [
    ["`machine`", machine.description ?? "", "block, see below", NONE, "required"],
    ["`migration`", migration.description ?? "", "block, see below", NONE, "every field's default"],
  ];
}

function lists(fields: Readonly<Record<string, Field>>): Row[] {
  return Object.entries(fields).map(([name, { description = "", maxItems, default: value }]) => [
    `\`${name}\``,
    description,
    "list of blocks, see below",
    `at most ${maxItems}`,
    value === undefined ? "required" : "none",
  ]);
}

/** A row for each field, or for those named; a block inside is shown field by field, as `load.rate`. */
function rowsOf(block: Field, names: readonly string[] = Object.keys(propertiesOf(block)), above = ""): Row[] {
  return names.flatMap((name): Row[] => {
    const field = propertiesOf(block)[name];
    const path = `${above}${name}`;
    if (field.properties !== undefined) return rowsOf(field, undefined, `${path}.`);
    if (field.description === undefined) throw new Error(`the schema does not describe ${path}`);
    const required = block.required?.includes(name) === true && field.default === undefined;
    return [
      [`\`${path}\``, field.description, typeOf(field, name), rangeOf(field, name), defaultOf(field, name, required)],
    ];
  });
}

function propertiesOf({ properties = {} }: Field): Readonly<Record<string, Field>> {
  return properties;
}

function typeOf(field: Field, name: string): string {
  if (field.items !== undefined) return `list: ${typeOf(field.items, name)}`;
  if (isRecord(field)) return `per device: ${typeOf(field.additionalProperties, name)}`;
  const quantity = QUANTITIES[name];
  if (quantity === "size") return "size: bytes, or 4K, 2M, 1G";
  if (quantity === "duration") return "duration: 50ms, 2s";
  if (quantity === "bandwidth") return "bandwidth: bytes/s, 500M, 10Gbit, `unlimited`";
  const type = { integer: "whole number", number: "number", boolean: "true or false" }[field.type ?? ""] ?? "text";
  return field.unit === undefined ? type : `${type}, ${field.unit}`;
}

function rangeOf(field: Field, name: string): string {
  if (field.items !== undefined) return `${rangeOf(field.items, name)}; at most ${field.maxItems}`;
  if (isRecord(field)) return rangeOf(field.additionalProperties, name);
  if (field.anyOf !== undefined) return field.anyOf.map((each) => rangeOf(each, name)).join(", ");
  if (field.title !== undefined) return `\`${field.title}\``;
  if (field.enum !== undefined) return field.enum.map((each) => `\`${each}\``).join(", ");
  if (field.pattern !== undefined) return `\`${field.pattern}\``;
  if (field.maxLength !== undefined) return `${field.minLength ?? 0} to ${field.maxLength} characters`;
  const { minimum, maximum } = field;
  if (minimum === undefined) return NONE;
  if (maximum === undefined || maximum === Number.MAX_SAFE_INTEGER) return `at least ${written(minimum, name)}`;
  return `${written(minimum, name)} to ${written(maximum, name)}`;
}

function defaultOf({ default: value }: Field, name: string, required: boolean): string {
  if (value === undefined) return required ? "required" : NONE;
  if (Array.isArray(value)) return value.map((each) => written(each as number, name)).join(", ") || "none";
  if (typeof value === "number") return written(value, name);
  if (typeof value === "object") return "none";
  return value === "" ? "empty" : `\`${String(value)}\``;
}

/** A number as a scenario writes it. */
function written(value: number, name: string): string {
  const quantity = QUANTITIES[name];
  if (quantity === "size") return value < 1024 ? String(value) : formatSize(value);
  return quantity === "duration" ? `${value}ms` : String(value);
}

function isRecord(field: Field): field is Field & { additionalProperties: Field } {
  return field.properties === undefined && typeof field.additionalProperties === "object";
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

function tableOf(rows: readonly Row[]): string {
  const cells = [HEAD, ...rows].map((row) => row.map((cell) => cell.replaceAll("|", "\\|")));
  const widths = HEAD.map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  const [head, ...body] = cells.map((row) => `| ${row.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |`);
  return [head, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...body].join("\n");
}
