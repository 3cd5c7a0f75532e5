import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { Loaded } from "./load-door.js";

/*
 * The package's doors, each in a process of its own: what importing it loads and changes, and what it exports, beside the
 * reviewed list in test/library/doors/. Who changes a door changes its list.
 */

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const LISTS = join(ROOT, "test/library/doors");
const PROGRAM = fileURLToPath(new URL("./load-door.js", import.meta.url));

interface Manifest {
  readonly exports: Readonly<Record<string, string | { readonly types: string; readonly default: string }>>;
}
const { exports: entries } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as Manifest;

/** Each door: how it is imported, and its file of declarations. */
const DOORS = Object.entries(entries).flatMap(([path, entry]) =>
  typeof entry === "string" ? [] : [{ door: `dirtmap${path.slice(1)}`, types: join(ROOT, entry.types), entry }],
);

async function load(door: string, ...without: readonly string[]): Promise<Loaded> {
  const { stdout } = await promisify(execFile)(process.execPath, [PROGRAM, door, ...without], { cwd: ROOT });
  return JSON.parse(stdout) as Loaded;
}

/** What a file of declarations exports by name, and the file that each name is from. */
function exportsOf(file: string): { name: string; isType: boolean; from: string }[] {
  const text = readFileSync(file, "utf8").replaceAll(/\/\*[\s\S]*?\*\//g, "");
  return [...text.matchAll(/export (type )?\{([^}]*)\} from "([^"]+)"/g)].flatMap(([, type, names, from]) =>
    names.split(",").flatMap((each) => {
      const [, own, name] = /^\s*(type )?(\w+)\s*$/.exec(each) ?? [];
      if (name === undefined) return [];
      return { name, isType: (type ?? own) !== undefined, from: join(dirname(file), from.replace(/\.js$/, ".d.ts")) };
    }),
  );
}

/** Names in lines of at most 120 characters. */
function listed(title: string, names: readonly string[]): string {
  const lines = [`${title}:`];
  for (const name of names.length === 0 ? ["none"] : names) {
    if (`${lines.at(-1)} ${name}`.length > 120) lines.push(" ");
    lines.push(`${lines.pop()} ${name}`);
  }
  return lines.join("\n");
}

test("each door is the index of the folder that it is named after, and has a list", () => {
  const files = DOORS.map(({ door, entry }) => [door, typeof entry === "string" ? entry : entry.default]);
  expect(files).toEqual(
    DOORS.map(({ door }) => [door, `./${join("dist/src", door.slice("dirtmap".length), "index.js")}`]),
  );
  const lists = DOORS.map(({ door }) => `${door.replace("dirtmap/", "")}.txt`);
  expect(readdirSync(LISTS).sort()).toEqual(lists.sort());
});

test.each(DOORS)("$door loads, changes and exports what its list says", async ({ door, types }) => {
  const { packages, folders, globals, values } = await load(door);
  const names = exportsOf(types).filter(({ isType }) => isType);
  const text = [
    listed("packages", packages),
    listed("folders of src", folders),
    listed("globals changed", globals),
    listed("values", values),
    listed("types", names.map(({ name }) => name).sort()),
  ].join("\n");
  expect(`${text}\n`).toBe(readFileSync(join(LISTS, `${door.replace("dirtmap/", "")}.txt`), "utf8"));
});

test("the main door opens where no package is installed", async () => {
  const { values } = await load("dirtmap", "*");
  expect(values).toContain("chooseTrackers");
  await expect(load("dirtmap/linux", "koffi")).rejects.toThrow("Cannot find package 'koffi'");
});

test("each name has one door, and is exported by name", () => {
  const doorsOf = new Map<string, string[]>();
  for (const { door, types } of DOORS) {
    expect(readFileSync(types, "utf8"), door).not.toMatch(/^export \*/m);
    for (const { name } of exportsOf(types)) doorsOf.set(name, [...(doorsOf.get(name) ?? []), door]);
  }
  expect([...doorsOf].filter(([, doors]) => doors.length > 1)).toEqual([]);
});

test("what is exported has a contract; the names of Linux headers have theirs there", () => {
  const without = DOORS.flatMap(({ door, types }) =>
    exportsOf(types)
      .filter(({ name }) => door !== "dirtmap/uapi" || !/^(VFIO|IOMMU|vfio|iommu)_/.test(name))
      .filter(({ name, from }) => !hasContract(name, from))
      .map(({ name }) => `${door}: ${name}`),
  );
  expect(without).toEqual([]);
});

/** Whether the declaration of a name in a file, or in the one that it passes on, has a docstring. */
function hasContract(name: string, file: string): boolean {
  const text = readFileSync(file, "utf8");
  const passedOn = exportsOf(file).find((each) => each.name === name);
  if (passedOn !== undefined) return hasContract(name, passedOn.from);
  const declaration = `export (declare )?(abstract )?(class|interface|type|const|function) ${name}\\b`;
  return new RegExp(`\\*/\\n${declaration}`).test(text);
}
