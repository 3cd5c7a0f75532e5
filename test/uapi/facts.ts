import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Fields, Struct } from "../../src/uapi/struct.js";

/** Something that the headers say as well: an expression of C, and its value according to src/uapi. */
export interface Fact {
  readonly expression: string;
  readonly ours: bigint;
  /** What a header must name for the expression to compile: identifiers, or `struct member` for a structure's. */
  readonly needs: readonly string[];
}

/** What a module exports besides code, as facts; and the names of what is neither code nor comparable. */
export interface ModuleFacts {
  readonly facts: readonly Fact[];
  readonly strangers: readonly string[];
}

/**
 * Every module of a folder of the build, imported, so that what is added there is compared without being listed anywhere.
 * @param folder relative to dist
 */
export async function factsOf(folder: string): Promise<Map<string, ModuleFacts>> {
  const path = fileURLToPath(new URL(`../../${folder}/`, import.meta.url));
  const modules = readdirSync(path).filter((name) => name.endsWith(".js") && !name.endsWith(".test.js"));
  return new Map(
    await Promise.all(
      modules.map(
        async (name): Promise<[string, ModuleFacts]> => [name, exportedFacts(await import(join(path, name)))],
      ),
    ),
  );
}

function exportedFacts(exported: Readonly<Record<string, unknown>>): ModuleFacts {
  const facts: Fact[] = [];
  const strangers: string[] = [];
  for (const [name, value] of Object.entries(exported)) {
    if (typeof value === "function") continue;
    if (value instanceof Struct) facts.push(...structFacts(value));
    else if (isNumber(value)) facts.push(constantFact(name, value));
    else if (isRequest(value)) facts.push(constantFact(value.name, value.number));
    else if (isTable(value)) {
      for (const [key, number] of Object.entries(value)) facts.push(constantFact(entryName(name, key), number));
    } else if (isOperations(value)) {
      for (const [key, { op, member }] of Object.entries(value)) {
        facts.push(constantFact(`${name}_${key}`, op), ...structFacts(member));
      }
    } else strangers.push(name);
  }
  return { facts, strangers };
}

/** An entry's name in the header: errno names are whole, those of an enum lack what its entries have in common. */
function entryName(table: string, key: string): string {
  if (table === "ERRNO") return key;
  // VFIO_PCI_BAR0_REGION_INDEX: the common part goes around it.
  const [, before, after] = /^(VFIO_PCI)_(REGION_INDEX|IRQ_INDEX)$/.exec(table) ?? [];
  return before === undefined ? `${table}_${key}` : `${before}_${key}_${after}`;
}

function isNumber(value: unknown): value is number | bigint {
  return typeof value === "number" || typeof value === "bigint";
}

function isRequest(value: unknown): value is { name: string; number: number } {
  return typeof value === "object" && value !== null && "name" in value && "number" in value;
}

function isTable(value: unknown): value is Record<string, number | bigint> {
  return typeof value === "object" && value !== null && Object.values(value).every(isNumber);
}

/** A table of an enum's entries, each with the member of a union that goes with it. */
function isOperations(value: unknown): value is Record<string, { op: number; member: Struct<Fields> }> {
  if (typeof value !== "object" || value === null) return false;
  return Object.values(value).every((entry) => isNumber(entry?.op) && entry.member instanceof Struct);
}

function constantFact(name: string, value: number | bigint): Fact {
  return { expression: name, ours: BigInt.asUintN(64, BigInt(value)), needs: [name] };
}

function structFacts(layout: Struct<Fields>): Fact[] {
  const [tag = "", ...members] = layout.name.split(".");
  const type = members.length === 0 ? `struct ${tag}` : `__typeof__(((struct ${tag} *)0)->${members.join(".")})`;
  const needs = [tag, ...members.map((member) => `${tag} ${member}`)];
  // Structures grow at their end: an older header's has another size.
  const whole = layout.fields.filter(({ name }) => name !== "union").map(({ name }) => `${tag} ${name}`);
  return [
    { expression: `sizeof(${type})`, ours: BigInt(layout.size), needs: [...needs, ...whole] },
    { expression: `_Alignof(${type})`, ours: BigInt(layout.alignment), needs },
    ...memberFacts(layout, type, { tag, path: "", base: 0, needs }),
  ];
}

/** The fields of a structure, those of structures in it as `outer.inner`, since the inner ones often have no tag. */
function memberFacts(
  layout: Struct<Fields>,
  type: string,
  at: { tag: string; path: string; base: number; needs: readonly string[] },
): Fact[] {
  return layout.fields.flatMap((field) => {
    // No C identifier: our name for room that in the header a union without a name takes.
    if (field.name === "union") return [];
    const path = at.path + field.name;
    const needs = [...at.needs, `${at.tag} ${field.name}`];
    const member = `((${type} *)0)->${path}`;
    const offset = at.base + field.offset;
    const facts = [
      { expression: `offsetof(${type}, ${path})`, ours: BigInt(offset), needs },
      { expression: `sizeof(${member})`, ours: BigInt(field.size), needs },
    ];
    if (typeof field.type !== "string") {
      // A structure with a tag of its own is declared elsewhere, with its members.
      const tag = field.type.name.includes(".") ? at.tag : field.type.name;
      return [...facts, ...memberFacts(field.type, type, { tag, path: `${path}.`, base: offset, needs })];
    }
    const element = field.count === null ? member : `${member}[0]`;
    const count = { expression: `sizeof(${member}) / sizeof(${element})`, ours: BigInt(field.count ?? 1), needs };
    const signed = {
      expression: `(__typeof__(${element}))-1 < (__typeof__(${element}))1`,
      ours: field.type.startsWith("s") ? 1n : 0n,
      needs,
    };
    return [...facts, count, signed];
  });
}

/** The subset of `names` (see {@link Fact.needs}) that preprocessed headers do not have. */
export function absentNames(preprocessed: string, names: Iterable<string>): Set<string> {
  const words = new Set(preprocessed.match(/\w+/g));
  return new Set(
    [...new Set(names)].filter((name) => {
      const [tag = "", member] = name.split(" ");
      if (!words.has(tag)) return true;
      if (member === undefined) return false;
      const body = new RegExp(`\\bstruct ${tag}\\s*\\{[^]*?^\\};?`, "m").exec(preprocessed)?.[0];
      return body === undefined || !new RegExp(`\\b${member}\\b`).test(body);
    }),
  );
}
