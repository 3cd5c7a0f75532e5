import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { allCommands, commandLine } from "../../src/cli/program.js";
import { traceHeaderSchema } from "../../src/evidence/trace/format.js";
import { feedEventSchema, feedHeaderSchema } from "../../src/observe/feed/schema.js";
import { parseScenario } from "../../src/scenario/scenario.js";
import { VfioUserHost } from "../../src/vfio-user/client/host.js";
import { serveDevice } from "../../src/vfio-user/server/server.js";
import { anchorsOf, blocksOf, commandsInText, commandsOf, type DocBlock, documents, linksOf, ROOT } from "./blocks.js";
import { IN_A_GUEST, MOVES_A_GUEST, NOT_RUN, OF_A_MIGRATION, SUBSTITUTIONS } from "./declared.js";
import { Session } from "./session.js";
import { expectForm, type Transcript, transcriptsOf } from "./transcript.js";

/*
 * The documents do what they say: every command in them runs, every scenario loads, every program compiles and runs, and
 * every output has the form of today's.
 */

const blocks = documents().flatMap(blocksOf);
const named = ({ file, line }: DocBlock) => `${file}:${line}`;
const inLanguage = (...languages: string[]) => blocks.filter(({ language }) => languages.includes(language));

/** The commands of Dirtmap; one below another comes after it. */
const NAMES = allCommands(commandLine({ version: "0", models: [] })).map(({ path }) => path);

/** Why a command is not run here; undefined: it is. */
function reasonNotToRun(command: string): string | undefined {
  return Object.entries(NOT_RUN).find(([beginning]) => command.startsWith(beginning))?.[1];
}

let session: Session;
beforeAll(async () => {
  session = await Session.open();
});
afterAll(() => session[Symbol.asyncDispose]());

it("each block says what it is", () => {
  const known = ["sh", "console", "yaml", "json", "ts", "text", "diff"];
  expect(blocks.filter(({ language }) => !known.includes(language)).map(named)).toEqual([]);
});

describe("each link leads to a file, and to a heading of it:", () => {
  it.each(documents())("%s", (file) => {
    const broken = linksOf(file).filter(({ path, heading }) => {
      if (!existsSync(join(ROOT, path))) return true;
      return heading !== undefined && path.endsWith(".md") && !anchorsOf(path).includes(heading);
    });
    expect(broken).toEqual([]);
  });
});

describe("each command runs:", () => {
  for (const block of inLanguage("sh")) {
    const commands = commandsOf(block.text);
    const run = commands.filter((command) => reasonNotToRun(command) === undefined);
    it.skipIf(run.length === 0)(named(block), { timeout: 300_000 }, async () => {
      for (const command of run) {
        if (command.startsWith("qemu-system") && session.noQemu !== undefined) continue;
        await session.run(command);
      }
      await session.stop();
    });
  }

  const all = inLanguage("sh", "console").flatMap(({ text }) => commandsOf(text.replaceAll(/^\$ /gm, "")));

  it("but for those that can't, all of which are still there", () => {
    for (const beginning of Object.keys(NOT_RUN)) {
      expect(
        all.some((command) => command.startsWith(beginning)),
        beginning,
      ).toBe(true);
    }
  });

  it("with nothing substituted that is not there", () => {
    for (const [from] of SUBSTITUTIONS)
      expect(
        all.some((command) => from.test(command)),
        String(from),
      ).toBe(true);
  });

  it("and scripts of the package are called by the names that they have", () => {
    const { scripts } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { scripts: object };
    const called = all.flatMap((command) => [...command.matchAll(/npm run ([\w:]+)/g)].map(([, name]) => name));
    expect(called.filter((name) => !(name in scripts))).toEqual([]);
  });
});

describe("each option that a document names is one of its command:", () => {
  const helps = new Map<string, string>();
  const helpOf = (command: string): string => {
    const help =
      helps.get(command) ??
      spawnSync(process.execPath, [join(ROOT, "bin/dirtmap.js"), ...command.split(" "), "--help"], { encoding: "utf8" })
        .stdout;
    helps.set(command, help);
    return help;
  };

  // Many processes, one after the other.
  it.each(documents())("%s", { timeout: 300_000 }, (file) => {
    const shell = blocksOf(file).filter(({ language }) => language === "sh" || language === "console");
    const commands = [
      ...shell.flatMap(({ text }) => commandsOf(text.replaceAll(/^\$ /gm, ""))),
      ...commandsInText(file),
    ];
    for (const written of commands) {
      const [, words] = /^(?:npx )?dirtmap ([a-z][^|]*)/.exec(written) ?? [];
      if (words === undefined) continue;
      const name = NAMES.findLast((path) => `${words} `.startsWith(`${path} `)) ?? "";
      const rest = words.slice(name.length);
      expect(helpOf(name), `\`${written}\``).toContain(`Usage: dirtmap ${name}`);
      for (const [option] of rest.matchAll(/(?<=\s)--[a-z-]+/g))
        expect(helpOf(name), `\`${written}\``).toContain(option);
    }
  });
});

describe("each output has the form of today's:", () => {
  for (const block of inLanguage("console")) {
    const here = ({ command }: Transcript) =>
      ![IN_A_GUEST, MOVES_A_GUEST, OF_A_MIGRATION].some((elsewhere) => elsewhere.test(command));
    for (const transcript of transcriptsOf(block.text).filter(here)) {
      const { command } = transcript;
      it(`${named(block)}: ${command}`, { timeout: 300_000 }, async () => {
        expectForm(await session.run(command), transcript);
      });
    }
  }
});

describe("each file that is shown can be read:", () => {
  const scenarios = inLanguage("yaml").filter(({ text }) => /^machine:/m.test(text));

  it.each(inLanguage("yaml").map((block) => [named(block), block.text]))("%s is YAML", (_, text) => {
    expect(parse(text)).toBeTypeOf("object");
  });

  it.each(scenarios.map((block) => [named(block), block.text]))(
    "%s is a scenario, whose devices are all tracked, and it migrates",
    { timeout: 300_000 },
    async (_, text) => {
      const { machine } = parseScenario(text, { file: "my.yaml", folder: session.folder });
      writeFileSync(join(session.folder, "my.yaml"), text);
      const { devices } = JSON.parse(await session.run("dirtmap plan --scenario ./my.yaml --json")) as {
        devices: { tracker: string }[];
      };
      expect(devices).toHaveLength(machine.devices.length);
      // All that an untracked device may write is sent while the machine stands still: that is what is over the limit.
      expect(devices.filter(({ tracker }) => tracker === "everything")).toEqual([]);
      const report = JSON.parse(await session.run("dirtmap migrate --scenario ./my.yaml --json")) as object;
      expect(report).toMatchObject({ result: "completed", verified: true });
    },
  );

  it.each(inLanguage("json").map((block) => [named(block), block.text]))("%s is JSON", (_, text) => {
    JSON.parse(text);
  });

  it("a trace's header", () => {
    const [{ text }] = blocksOf("docs/trace.md").filter(({ language }) => language === "json");
    traceHeaderSchema.parse(JSON.parse(text));
  });

  it("live events, but for what is left out of them", () => {
    const [{ text }] = blocksOf("docs/api.md").filter(({ text }) => text.startsWith("event: "));
    expect([...text.matchAll(/^event: (.+)$/gm)].map(([, type]) => type)).toEqual(["begin", "event", "end"]);
    const [begin, event, end] = [...text.matchAll(/^data: (.+)$/gm)].map(
      ([, data]) => JSON.parse(data.replace(/,?…/g, "")) as Record<string, unknown>,
    );
    expect(Object.keys(feedHeaderSchema.shape)).toEqual(expect.arrayContaining(Object.keys(begin)));
    feedEventSchema.parse(event.event);
    expect(new Set([begin.run, event.run, end.run])).toHaveLength(1);
  });

  it("what a server counts", async () => {
    const [{ text }] = blocksOf("docs/vfio-user.md").filter(({ language }) => language === "json");
    const path = join(session.folder, "mlx5");
    await using _server = await serveDevice({ model: "mlx5", path });
    await using host = new VfioUserHost([{ path, id: "mlx5" }]);
    const counters = await (await host.openControl("mlx5")).serverCounters();
    expect(Object.keys(counters ?? {}).sort()).toEqual(Object.keys(JSON.parse(text)).sort());
  });
});

describe("each program compiles and runs:", () => {
  // Inside of the package, so that it is found by its name.
  const folder = mkdtempSync(join(ROOT, "dist/docs-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it.each(inLanguage("ts").map((block) => [named(block), block.text]))("%s", (name, text) => {
    const file = join(folder, `${name.replaceAll(/\W/g, "-")}.mts`);
    writeFileSync(file, text);
    const options = [
      "--target",
      "es2023",
      "--module",
      "nodenext",
      "--lib",
      "es2023,esnext.disposable",
      "--types",
      "node",
    ];
    const tsc = join(ROOT, "node_modules/.bin/tsc");
    const compiled = spawnSync(tsc, [...options, "--strict", "--skipLibCheck", "--ignoreConfig", file], {
      encoding: "utf8",
    });
    expect(compiled.stdout).toBe("");
    const ran = spawnSync(process.execPath, [file.replace(/\.mts$/, ".mjs")], { encoding: "utf8", timeout: 60_000 });
    expect(ran.stderr).toBe("");
    expect(ran.stdout).toMatch(/^nic0 iommu .+\n/m);
  });
});
