import { createRequire, register } from "node:module";
import { pathToFileURL } from "node:url";
import { MessageChannel, receiveMessageOnPort } from "node:worker_threads";
import type { HookData } from "./load-hooks.js";

/*
 * A process that imports one door and prints what that did, as JSON: `load-door.js DOOR [PACKAGE-TO-DO-WITHOUT …]`.
 */

export interface Loaded {
  /** Of Dirtmap's dependencies, those of which a module was loaded, sorted. */
  readonly packages: readonly string[];
  /** Folders of src/ of which a module was loaded, sorted; `.` is src/ itself. */
  readonly folders: readonly string[];
  /** Names of what the door exports at run time, sorted. */
  readonly values: readonly string[];
  /** Properties of globals, and of what globals hold, that are not as before, sorted: `Reflect.decorate`. Of what is new or replaced only its own name. */
  readonly globals: readonly string[];
}

/** Own properties of all globals, of their values, and of these values' prototypes: descriptors by path. */
function globals(): Map<string, PropertyDescriptor> {
  const found = new Map<string, PropertyDescriptor>();
  const add = (path: string, object: object) => {
    for (const key of Reflect.ownKeys(object)) {
      const descriptor = Object.getOwnPropertyDescriptor(object, key);
      if (descriptor !== undefined) found.set(`${path}${String(key)}`, descriptor);
    }
  };
  const isObject = (value: unknown): value is object =>
    (typeof value === "object" && value !== null) || typeof value === "function";
  add("", globalThis);
  for (const [name, { value }] of [...found]) {
    if (!isObject(value) || value === globalThis) continue;
    add(`${name}.`, value);
    const prototype: unknown = found.get(`${name}.prototype`)?.value;
    if (isObject(prototype)) add(`${name}.prototype.`, prototype);
  }
  return found;
}

function differences(before: Map<string, PropertyDescriptor>, after: Map<string, PropertyDescriptor>): string[] {
  const isSame = (a: PropertyDescriptor | undefined, b: PropertyDescriptor | undefined) =>
    a !== undefined &&
    b !== undefined &&
    (["value", "get", "set", "writable", "enumerable", "configurable"] as const).every((key) =>
      Object.is(a[key], b[key]),
    );
  const changed = new Set(
    [...before.keys(), ...after.keys()].filter((path) => !isSame(before.get(path), after.get(path))),
  );
  return [...changed].filter((path) => !changed.has(path.split(".")[0]) || !path.includes(".")).sort();
}

/** The part of a package or the folder of src/ that a module is of. */
function partOf(url: string): { package?: string; folder?: string } {
  const name = /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(url)?.[1];
  if (name !== undefined) return { package: name };
  const path = /\/dist\/src\/(.*)$/.exec(url)?.[1];
  return path === undefined ? {} : { folder: path.includes("/") ? path.split("/")[0] : "." };
}

const [door, ...without] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const { port1, port2 } = new MessageChannel();
register<HookData>("./load-hooks.js", {
  parentURL: import.meta.url,
  data: { loaded: port2, without },
  transferList: [port2],
});
// Node defines some globals when they are first looked at.
for (const key of Reflect.ownKeys(globalThis)) Reflect.get(globalThis, key);
const before = globals();
const exported: object = await import(door);
const changed = differences(before, globals());
const urls: string[] = Object.keys(require.cache).map((path) => pathToFileURL(path).href);
for (let next = receiveMessageOnPort(port1); next !== undefined; next = receiveMessageOnPort(port1)) {
  urls.push(String(next.message));
}
port1.close();
const parts = urls.map(partOf);
const { dependencies } = require("dirtmap/package.json") as { dependencies: object };
const sorted = (names: readonly (string | undefined)[]) =>
  [...new Set(names.filter((name) => name !== undefined))].sort();
const loaded: Loaded = {
  packages: sorted(parts.map((part) => part.package)).filter((name) => Object.hasOwn(dependencies, name)),
  folders: sorted(parts.map((part) => part.folder)),
  values: Object.keys(exported).sort(),
  globals: changed,
};
process.stdout.write(JSON.stringify(loaded));
