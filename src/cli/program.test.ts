import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { RENAMED } from "./input/options/renamed.js";
import { allCommands, commandLine } from "./program.js";

/*
 * A command is declared in commands/ and run by the module of the same path in run/: `dirtmap bench trackers` by
 * run/bench/trackers.js.
 */

const CLI = fileURLToPath(new URL(".", import.meta.url));
const BUILT = dirname(CLI);

const all = allCommands(commandLine({ version: "0", models: [] }));
const commands = all.filter(({ isGroup }) => !isGroup);

/** The modules of a folder, as paths of commands. */
function modulesIn(folder: string): string[] {
  return readdirSync(join(CLI, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".js") && !file.includes(".test.") && !file.startsWith("shared/"))
    .map((file) => file.replace(/\.js$/, "").replaceAll("/", " "))
    .sort();
}

describe("a command", () => {
  it("has a module that declares it, and each module declares one", () => {
    const paths = all.map(({ path }) => path).filter((path) => path !== "");
    expect(modulesIn("commands")).toEqual(paths.sort());
  });

  it("has a module that runs it, and each module runs one", () => {
    expect(modulesIn("run")).toEqual(commands.map(({ path }) => path).sort());
  });

  it.each(commands.map(({ path }) => path))(
    "is run by the module of its own path, the only one that it loads: %s",
    (path) => {
      const file = join(CLI, "commands", `${path.replaceAll(" ", "/")}.js`);
      const loaded = [...readFileSync(file, "utf8").matchAll(/\bimport\("([^"]+)"\)/g)].map(([, to]) =>
        relative(join(CLI, "run"), resolve(dirname(file), to)),
      );
      expect(loaded).toEqual([`${path.replaceAll(" ", "/")}.js`]);
    },
  );
});

/** All modules that one imports, and those import, before anything is called. */
function importedBy(file: string, found = new Set<string>()): Set<string> {
  if (found.has(file)) return found;
  found.add(file);
  for (const [, from] of readFileSync(file, "utf8").matchAll(/^(?:import|export) .*\bfrom "([^"]+)";$/gm)) {
    if (from.startsWith(".")) importedBy(resolve(dirname(file), from), found);
    else found.add(from);
  }
  return found;
}

/** What declarations need from elsewhere: lists of words, and tables. None of it imports more. */
const LIGHT = [
  ...["commander", "node:fs", "node:path"],
  ...["evidence/designs/workload-names.js", "evidence/report/report-path.js", "scenario/choices.js"],
  ...["migration/data-plane.js", "migration/limits.js", "migration/report.js", "tracking/choice.js"],
  // An address is checked when it is typed.
  ...["qemu/stream-address.js", "migration/transport/endpoint.js", "migration/transport/host-name.js", "node:net"],
];

it("declarations load little, so that `--help` is quick", () => {
  const imported = [...importedBy(join(CLI, "main.js"))].map((file) =>
    file.startsWith("/") ? relative(BUILT, file) : file,
  );
  const ours = /^cli\/(commands\/|input\/options\/|[\w-]+\.js$)|^[\w-]+\.js$/;
  expect(imported.filter((file) => !ours.test(file)).sort()).toEqual(LIGHT.toSorted());
});

describe("an option", () => {
  const options = commands.flatMap(({ path, command }) =>
    command.options.filter(({ hidden }) => !hidden).map((option) => ({ path, option })),
  );
  const names = [...new Set(options.map(({ option }) => option.long ?? ""))];

  /** Without the default, which may be the command's own. */
  const meaning = (description: string) => description.replace(/ \(default: .*\)$/, "");

  /** Options that several commands say in words of their own; each means the same. */
  const OWN_WORDS: Readonly<Record<string, string>> = {
    "--json": "each prints what it has",
    "--once": "each ends after its first: a migration, an interval",
    "--output": "each says what the file is for",
    "--from": "each says what it does otherwise",
    "--quick": "each says what it does less of",
    "--listen": "addresses of HTTP have no scheme",
    "--socket": "a device is served there, or taken over from there",
    "--dma": "a proxy decides what another server is given of it",
    "--incoming": "a device of Dirtmap's own leaves its disk alone meanwhile",
    "--qmp": "each says which QEMU",
    "--tracker": "of a QEMU guest, migrate knows trackers of its own besides",
    "--channels": "a destination takes Dirtmap's own as the source says; of QEMU's it must be told",
    "--policy": "a recommendation follows no measurement: it makes one of it",
  };

  it.each(names)("means one thing wherever it is: %s", (name) => {
    const same = options.filter(({ option }) => option.long === name).map(({ option }) => option);
    if (same.length === 1 || name in OWN_WORDS) return;
    expect(new Set(same.map(({ description }) => meaning(description)))).toHaveLength(1);
    expect(new Set(same.map(({ flags }) => flags))).toHaveLength(1);
  });

  it("has a letter that means one thing, too", () => {
    const letters = new Map<string, Set<string>>();
    for (const { option } of options) {
      if (option.short === undefined) continue;
      letters.set(option.short, (letters.get(option.short) ?? new Set()).add(option.long ?? ""));
    }
    expect([...letters.values()].filter((meanings) => meanings.size > 1)).toEqual([]);
  });

  it.each(
    Object.entries(RENAMED).flatMap(([path, renamed]) =>
      Object.entries(renamed).map(([old, name]) => [path, old, name]),
    ),
  )("that was renamed is refused with its new name: %s %s", (path, old, name) => {
    const [flag] = old.split(" ");
    const typed = [...path.split(" "), flag, "a=b"];
    expect(() => commandLine({ version: "0", models: [] }).parse(typed, { from: "user" })).toThrow(
      expect.objectContaining({ message: expect.stringContaining(`the option is now called ${name}`) }),
    );
    const known = all.find((each) => each.path === path)?.command.options.map(({ long }) => long);
    expect(known).toContain(name);
  });
});
