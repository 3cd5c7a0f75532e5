import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Argument, Command, Option } from "commander";
import { describe, expect, it } from "vitest";
import { DEFAULTS } from "../defaults.js";
import { SERVABLE_MODELS } from "../devices/servable-models.js";
import { parseScenario } from "../scenario/scenario.js";
import { DEFAULT_POLICY } from "../tracking/choice.js";
import { parseSize } from "../units.js";
import { linkOf } from "./input/option-scenario-default.js";
import { allCommands, commandLine } from "./program.js";

const program = commandLine({ version: "0", models: SERVABLE_MODELS });
const commands = allCommands(program).map(({ command }) => command);

/** Defaults that describe what happens, and cannot be typed. */
const DESCRIBED = [
  "$XDG_DATA_HOME/dirtmap/evidence.db, or below ~/.local/share",
  "$XDG_STATE_HOME/dirtmap, or ~/.local/state/dirtmap",
  "a second process on this machine",
  "all",
  "device",
  "all on a VFIO driver",
  "all that can be measured",
  "it quits",
  "no multifd",
  "on a terminal until told",
  "only this user",
  "the model's",
  "the newest",
  "the scenario's",
  "the store's newest",
  "until Ctrl-C, or the run's end",
];

/** Lines that look like a second default, and are none. */
const NO_DEFAULTS = [
  // A destination that was told nothing runs nothing.
  "this.#hello?.runAfterMs ?? 0",
  // A guest of QEMU is not watched once it runs.
  "runAfterMs: 0,",
  // A receiver before any channel has met it.
  "channels: 0, meeting: 0",
  // A header without a limit: the view draws none.
  "const { devices, downtimeLimitMs = 0 } = header",
  // Long on purpose: what is left to move after the first round is compared.
  "const MIGRATIONS = {",
];

interface Printed {
  readonly command: Command;
  readonly name: string;
  readonly option: Option | Argument;
  /** What stands behind `default:`, a part for each case. */
  readonly parts: readonly string[];
}

/** What the help of a command says of each option's and argument's default, on one line each. */
function printedDefaults(command: Command): Printed[] {
  const lines = command.configureHelp({ helpWidth: 10_000 }).helpInformation().split("\n");
  const found = [
    ...command.options.map((option) => ({ name: option.flags, option })),
    ...command.registeredArguments.map((option) => ({ name: option.name(), option })),
  ];
  return found.flatMap(({ name, option }) => {
    const line = lines.find((text) => text.trimStart().startsWith(`${name} `)) ?? "";
    const [, printed] = /default: (.*)\)$/.exec(line) ?? [];
    return printed === undefined
      ? []
      : [
          {
            command,
            name,
            option,
            parts: printed.split(/; with --quick |, else /).map((part) => part.replaceAll('"', "")),
          },
        ];
  });
}

/** An option's value as commander makes it of a text; several words are several values. */
function typed(option: Option | Argument, text: string): unknown {
  const parse = option.parseArg as ((text: string, before: unknown) => unknown) | undefined;
  const words = option.variadic ? text.split(" ") : [text];
  if (parse === undefined) return option.variadic ? words : text;
  return words.reduce<unknown>((before, word) => parse(word, before), undefined);
}

const PRINTED = commands.flatMap(printedDefaults);

describe("every default that help prints", () => {
  const cases = PRINTED.flatMap(({ command, name, option, parts }) =>
    parts.filter((part) => !DESCRIBED.includes(part)).map((part) => [command.name(), name, part, option] as const),
  );

  it("is found at all", () => {
    const flags = cases.map(([command, name]) => `${command} ${name}`);
    for (const wanted of ["migrate --downtime-limit <duration>", "predict --interval <duration>", "certs folder"]) {
      expect(flags).toContain(wanted);
    }
    expect(cases.length).toBeGreaterThan(60);
  });

  it.each(cases)("of %s %s can be typed: %s", (_command, _name, text, option) => {
    const value = typed(option, text);
    expect(valuesOf(DEFAULTS)).toContainEqual(untrackedMode(value));
    if (option.defaultValue !== undefined) expect(value).toEqual(option.defaultValue);
  });

  it("of a model's options can be typed, too", () => {
    for (const { options } of SERVABLE_MODELS) {
      for (const { name, kind, default: value } of options) {
        if (value === undefined) continue;
        const [, text] = new RegExp(`^ +${name} .*\\(default: (.*)\\)$`, "m").exec(helpOf("device")) ?? [];
        expect(text).toBeDefined();
        if (kind === "size" && name === "vram") expect(parseSize(text)).toBe(value);
      }
    }
  });

  it("is what applies, for commands whose options have none of their own", () => {
    const { migration } = parseScenario("machine: { memory: 64M, vcpus: {}, devices: [] }\n", {
      file: "none.yaml",
      folder: ".",
    });
    expect(migration).toMatchObject({
      policy: DEFAULTS.policy,
      unmeasured: DEFAULTS.unmeasured,
      domain: DEFAULTS.domain,
      untracked: DEFAULTS.untracked,
      design: DEFAULTS.design,
      downtimeLimit: DEFAULTS.downtimeLimitMs,
      channels: DEFAULTS.channels,
      runAfter: DEFAULTS.runAfterMs,
    });
    expect(linkOf({}, {})).toEqual({ bandwidth: DEFAULTS.linkBandwidth, downtimeLimitMs: DEFAULTS.downtimeLimitMs });
    expect(DEFAULT_POLICY).toMatchObject({
      order: DEFAULTS.policy,
      domain: DEFAULTS.domain,
      untracked: DEFAULTS.untracked,
    });
  });
});

describe("the table of defaults", () => {
  const SOURCE = fileURLToPath(new URL("../../../src", import.meta.url));
  const files = readdirSync(SOURCE, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts") && !file.includes(".test.") && file !== "defaults.ts")
    .map((file) => ({ file, text: readFileSync(join(SOURCE, file), "utf8") }));

  it("has no second literal beside it: what was left out is filled in from the table", () => {
    const names = "downtimeLimit|bandwidth|channels|maxRounds|verify|runAfter|decide|unmeasured|untracked|observe";
    const second = new RegExp(
      `\\b(${names})(Ms)?\\b(: (?=\\d)| = |[^;,\\n]{0,100}?(\\?\\?|\\.default\\()) *(\\d|"|Number\\.[A-Z])`,
    );
    for (const old of [
      "channels = 2 } =",
      "downtimeLimitMs ?? 300,",
      "downtimeLimit: z.number().default(100)",
      "channels: 2,",
    ]) {
      expect(old).toMatch(second);
    }
    const found = files.flatMap(({ file, text }) =>
      text.split("\n").flatMap((line) => (second.test(line) ? [`${file}: ${line.trim()}`] : [])),
    );
    expect(found.filter((line) => !NO_DEFAULTS.some((part) => line.includes(part)))).toEqual([]);
  });

  it("is what the library's docstrings say", () => {
    const said = files.flatMap(({ file, text }) =>
      [...text.matchAll(/Default:? (\d+)(?: ms)?\. \*\/\n\s+readonly (\w+)\?:/g)].map(([, value, name]) => ({
        file,
        name,
        value,
      })),
    );
    expect(said.length).toBeGreaterThan(4);
    for (const { name, value } of said)
      expect({ name, value: Number(value) }).toEqual({ name, value: tableValue(name) });
  });

  function tableValue(name: string): unknown {
    return (DEFAULTS as Readonly<Record<string, unknown>>)[name];
  }
});

function helpOf(name: string): string {
  let text = "";
  const command = commands.find((each) => each.name() === name);
  command?.configureOutput({ writeOut: (part) => (text += part) }).outputHelp();
  return text;
}

/** All values in the table, however deep. */
function valuesOf(table: object): unknown[] {
  return Object.values(table).flatMap((value) =>
    typeof value === "object" && value !== null ? [value, ...valuesOf(value)] : [value],
  );
}

/** `--untracked MODE` is for all devices. */
function untrackedMode(value: unknown): unknown {
  return typeof value === "object" && value !== null && "all" in value ? value.all : value;
}
