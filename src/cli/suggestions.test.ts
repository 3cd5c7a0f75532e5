import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { ASSUMED_LINK } from "../evidence/predict/link.js";
import { type Observation, predict } from "../evidence/predict/predict.js";
import { fakeBenchmark, fakeDevice } from "../evidence/recommend/fake-benchmark.test.helper.js";
import { MiB } from "../memory/address.js";
import { parseDuration } from "../units.js";
import { allCommands, commandLine } from "./program.js";
import { benchCommand, followCommand } from "./text/commands-to-type.js";

/*
 * Whatever Dirtmap prints to be typed is a command line that it takes.
 */

/** Parses a command without running it. @returns the command's name @throws CommanderError for what it does not take */
function parse(words: readonly string[]): string {
  const program = commandLine({ version: "0", models: [] });
  let ran = "";
  for (const { path, command, isGroup } of allCommands(program)) {
    command.configureOutput({ writeOut: () => {}, writeErr: () => {} });
    if (isGroup) continue;
    command.action(() => {
      ran = path;
    });
  }
  program.parse(words, { from: "user" });
  return ran;
}

/** The words of a command as a shell splits it. */
function wordsOf(command: string): string[] {
  return [...command.matchAll(/(?:'[^']*'|"[^"]*"|\\'|[^\s'"])+/g)].map(([word]) => word.replaceAll(/['"]/g, ""));
}

/** Stands for what the reader knows: a word in capitals is a value of that option. */
const VALUES: Readonly<Record<string, string>> = { "--to": "tls://HOST:1", "--host": "vfio-user:PATH" };

/** The commands of the program itself. */
const NAMES = commandLine({ version: "0", models: [] }).commands.map((command) => command.name());

/** Commands in a text: each up to what a sentence, a shell, or a quotation ends it with. */
function commandsIn(text: string): string[] {
  return [...text.matchAll(new RegExp(`(?:npx )?dirtmap ((?:${NAMES.join("|")})\\b[^\`|&;>)\\n\\\\]*)`, "g"))]
    .map(([, command]) => command.split(/ {2,}|, | #| measures| makes| takes| has | and | or |: | tells|"/)[0].trim())
    .filter((command) => !command.includes("…"))
    .map((command) => command.replace(/[.,:]$/, ""));
}

const SOURCE = fileURLToPath(new URL("../../../src", import.meta.url));
const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

/** String literals of all sources that name one of our commands, with where they stand. */
const LITERALS = readdirSync(SOURCE, { recursive: true, encoding: "utf8" })
  // What commands-to-type.ts makes is tried below, with all that it is made of.
  .filter((file) => file.endsWith(".ts") && !file.includes(".test.") && !file.endsWith("commands-to-type.ts"))
  .flatMap((file) => {
    const text = readFileSync(join(SOURCE, file), "utf8").replaceAll(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
    // What is filled in is a value; right behind a word it is more options.
    const filled = text
      .replaceAll("\\`", "`")
      .replaceAll(/(?<=[a-z])\$\{[^}]*\}/g, "")
      .replaceAll(/\$\{[^}]*\}/g, "X");
    return commandsIn(filled).map((command) => [command, file] as const);
  });

const DOCUMENTED = ["README.md", ...readdirSync(join(ROOT, "docs")).map((file) => `docs/${file}`)]
  .filter((file) => file.endsWith(".md"))
  .flatMap((file) => commandsIn(readFileSync(join(ROOT, file), "utf8")).map((command) => [command, file] as const));

describe("a command that a message or a help text names", () => {
  it("is found at all", () => {
    expect(LITERALS.length).toBeGreaterThan(100);
    expect(DOCUMENTED.length).toBeGreaterThan(30);
  });

  it.each(["migrate --frobnicate", "plan --design type2", "bench trakers", "receive much", "replay"])(
    "is refused where it is wrong: dirtmap %s",
    (command) => {
      if (command === "replay") expect(() => parse([command])).toThrow();
      else expect(() => parseLoosely(command)).toThrow();
    },
  );

  it.each([...new Map([...DOCUMENTED, ...LITERALS])])("is taken by the command line: dirtmap %s (%s)", (command) => {
    expect(() => parseLoosely(command)).not.toThrow();
  });
});

/** Parses a command whose values may stand for others; a command alone may lack what it needs. */
function parseLoosely(command: string): void {
  const words = wordsOf(command).map((word, index, all) => {
    const given = VALUES[all[index - 1] ?? ""];
    return given !== undefined && /^[A-Z]+$/.test(word) ? given : word;
  });
  try {
    parse(words);
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "commander.helpDisplayed" || code === "commander.help") return;
    // Only named: `dirtmap resume`, `dirtmap device`.
    const isNamed = words.length <= 2 && /missing|mandatory/i.test(code ?? "");
    if (!isNamed) throw error;
  }
}

describe("a prediction that does not converge", () => {
  /** A device that writes the same 32 MiB over and over. */
  const observation: Observation = {
    memoryBytes: 64 * MiB,
    platform: "pc",
    zeroShare: 0,
    deviceStateBytes: 0,
    owners: [{ owner: "vf0", tracker: "iommu", devices: [{ id: "vf0", model: "mlx5" }] }],
    unread: [],
    intervals: Array.from({ length: 20 }, () => ({
      elapsedMs: 50,
      owners: new Map([["vf0", Uint32Array.of(256, 8192)]]),
    })),
  };
  const slow = { ...ASSUMED_LINK, firstBytesPerSecond: 200e6, bytesPerSecond: 200e6 };

  it("names a downtime limit that can be typed, and with which it converges", () => {
    const { why, converges } = predict(observation, slow, { downtimeLimitMs: 50 });
    expect(converges).toBe(false);
    const [, typed] = /--downtime-limit to (\S+)$/.exec(why?.remedy ?? "") ?? [];
    expect(parse(["predict", "--downtime-limit", typed])).toBe("predict");
    expect(predict(observation, slow, { downtimeLimitMs: parseDuration(typed) }).converges).toBe(true);
  });

  it("names more of what there is: channels without a limit of bandwidth, bandwidth with one, no limit beyond the longest", () => {
    const remedy = (bandwidth: number) => predict(observation, slow, { downtimeLimitMs: 50, bandwidth }).why?.remedy;
    expect(remedy(Number.POSITIVE_INFINITY)).toMatch(
      /lower their load, use more --channels or raise --downtime-limit to/,
    );
    expect(remedy(50e6)).toMatch(/raise --bandwidth/);
    expect(remedy(100)).toMatch(/^lower their load or raise --bandwidth$/);
  });
});

describe("a recommendation", () => {
  const benchmark = fakeBenchmark([fakeDevice("vf0", [{ tracker: "iommu" }])]);

  it.each([
    [{ host: "emulated", scenario: "nic-pair" }, "--scenario nic-pair"],
    [{ host: "emulated", scenario: "of a file" }, "--scenario FILE"],
    [{ host: "linux", scenario: null }, "--host linux"],
    [{ host: "vfio-user", scenario: null }, "--host vfio-user:PATH"],
  ])("of %j names the commands that measure and follow the same machine", (where, named) => {
    const again = benchCommand({ ...benchmark, ...where });
    expect(again).toContain(named);
    expect(parse(wordsOf(again).slice(1))).toBe("bench trackers");
    const follow = followCommand("my files/r.json", { ...benchmark, ...where });
    expect(follow).toContain(named);
    expect(follow).toMatch(/ --policy 'measured:my files\/r\.json'$/);
    expect(parse(wordsOf(follow).slice(1))).toBe(where.scenario === null ? "plan" : "migrate");
  });
});
