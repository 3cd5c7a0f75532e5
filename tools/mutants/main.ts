import { appendFileSync, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { SourceMap } from "node:module";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Random } from "../random.js";
import { CORE, type Part } from "./core.js";
import { EQUIVALENT } from "./equivalent.js";
import { type Mutation, mutated, mutationsOf } from "./rules.js";
import { Sandbox, type Verdict } from "./sandbox.js";

const USAGE = `npm run test:mutants -- [options] [filter...]: breaks the correctness core in one place at a time, and sees whether
a test fails

  filter          part of a path below src/; without one, all files of the core
  --count N       mutants, chosen by the seed, evenly over the files (default: 120); 0: all
  --seed N        which ones (default: 1)
  --only ID       this mutant, from an earlier run, even if equivalent.ts explains it; may be repeated
  --results FILE  adds each verdict as a line of JSON, and skips those that are there
  --list          prints the mutants, and runs nothing

Mutants that tools/mutants/equivalent.ts explains are not run. Exits with 1 if another one lives.
`;

/** A mutant, where it is, and what must notice it. */
interface Mutant extends Mutation {
  readonly part: Part;
  /** Below `dist/`. */
  readonly file: string;
  /** In the TypeScript source: `src/memory/in-flight.ts:45`. */
  readonly where: string;
  readonly line: string;
}

/** What is written down of each. */
interface Result {
  readonly id: string;
  readonly where: string;
  readonly rule: string;
  readonly verdict: "caught" | "lives";
  /** The stage that noticed it, from 0. */
  readonly stage: number | null;
}

/** A mutant may make tests slow without an end; this many times the unbroken code's time, and some for starting. */
const PATIENCE = 4;
const PATIENCE_MS = 30_000;

const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

function filesOf(part: Part): string[] {
  return part.files.flatMap((path) => {
    const folder = join(root, "dist/src", path);
    if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [`src/${path}.js`];
    return readdirSync(folder)
      .filter((name) => name.endsWith(".js") && !name.includes(".test."))
      .map((name) => `src/${path}/${name}`);
  });
}

function mutantsOf(part: Part, file: string): Mutant[] {
  const path = join(root, "dist", file);
  const source = readFileSync(path, "utf8");
  const map = new SourceMap(JSON.parse(readFileSync(`${path}.map`, "utf8")));
  return mutationsOf(source).map((mutation) => {
    const before = source.slice(0, mutation.start).split("\n");
    const found = map.findEntry(before.length - 1, before[before.length - 1].length);
    const line = "originalLine" in found ? found.originalLine + 1 : 0;
    const text = source.split("\n")[before.length - 1].trim();
    // The same statement may stand in two files, and be noticed in one of them only.
    const id = `${file.replace(/^src\/|\.js$/g, "")}:${mutation.id}`;
    return { ...mutation, id, part, file, where: `${file.replace(/js$/, "ts")}:${line}`, line: text };
  });
}

/** Evenly over the files, so that a long one doesn't take the place of short ones. */
function choose(mutants: readonly Mutant[], count: number, seed: number): Mutant[] {
  if (count === 0 || count >= mutants.length) return [...mutants];
  const random = new Random(seed);
  const byFile = new Map<string, Mutant[]>();
  for (const mutant of mutants) byFile.set(mutant.file, [...(byFile.get(mutant.file) ?? []), mutant]);
  const chosen: Mutant[] = [];
  while (chosen.length < count) {
    for (const group of byFile.values()) {
      if (group.length > 0 && chosen.length < count) chosen.push(...group.splice(random.below(group.length), 1));
    }
  }
  return chosen;
}

/** Runs each stage of tests with the mutant in its file, until one notices it. */
async function judge(mutant: Mutant, sandbox: Sandbox, limits: TimeLimits): Promise<Result> {
  const { id, where, rule, part } = mutant;
  const path = join("dist", mutant.file);
  // The sandbox's files, since the project may be built anew meanwhile.
  const broken = mutated(readFileSync(join(sandbox.root, path), "utf8"), mutant);
  const own = mutant.file.replace(/js$/, "test.js");
  const stages = existsSync(join(sandbox.root, "dist", own)) ? [[own], ...part.stages] : part.stages;
  for (const [stage, filters] of stages.entries()) {
    const limitMs = await limits.of(filters);
    const verdict = await sandbox.runWith(path, broken, () => sandbox.test(filters, limitMs));
    if (verdict !== "passed") return { id, where, rule, verdict: "caught", stage };
  }
  return { id, where, rule, verdict: "lives", stage: null };
}

/** How long stages may take: measured on the unbroken code when a mutant first comes to them. */
class TimeLimits {
  readonly #sandbox: Sandbox;
  readonly #limitsMs = new Map<string, number>();

  constructor(sandbox: Sandbox) {
    this.#sandbox = sandbox;
  }

  /** @throws Error if the tests fail on the unbroken code: then no mutant can be judged */
  async of(filters: readonly string[]): Promise<number> {
    const stage = filters.join(" ");
    const known = this.#limitsMs.get(stage);
    if (known !== undefined) return known;
    const since = performance.now();
    const verdict: Verdict = await this.#sandbox.test(filters, 15 * 60_000);
    if (verdict !== "passed") throw new Error(`the tests of ${stage} ${verdict} without a mutant`);
    const limitMs = (performance.now() - since) * PATIENCE + PATIENCE_MS;
    this.#limitsMs.set(stage, limitMs);
    return limitMs;
  }
}

function describe({ id, where, rule, line }: Mutant): string {
  return `${id}  ${where}  ${rule}  ${line.slice(0, 100)}`;
}

function readResults(path: string | undefined): Map<string, Result> {
  if (path === undefined || !existsSync(path)) return new Map();
  const lines = readFileSync(path, "utf8").split("\n").filter(Boolean);
  return new Map(lines.map((line) => JSON.parse(line) as Result).map((result) => [result.id, result]));
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      count: { type: "string", default: "120" },
      seed: { type: "string", default: "1" },
      only: { type: "string", multiple: true },
      results: { type: "string" },
      list: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  const count = Number(values.count);
  const seed = Number(values.seed);
  if (values.help || !Number.isInteger(count) || count < 0 || !Number.isInteger(seed)) {
    process.stderr.write(USAGE);
    return values.help ? 0 : 2;
  }
  const all = CORE.flatMap((part) => filesOf(part).flatMap((file) => mutantsOf(part, file)));
  const stale = Object.keys(EQUIVALENT).filter((id) => !all.some((mutant) => mutant.id === id));
  const wanted = all.filter(({ file }) => positionals.length === 0 || positionals.some((text) => file.includes(text)));
  const only = values.only;
  const mutants = only === undefined ? choose(wanted, count, seed) : all.filter(({ id }) => only.includes(id));
  process.stdout.write(`${mutants.length} of ${all.length} mutants, seed ${seed}\n`);
  if (values.list) {
    for (const mutant of mutants) process.stdout.write(`${describe(mutant)}\n`);
    return 0;
  }

  const results = readResults(values.results);
  using sandbox = new Sandbox(root);
  // A mutant may have made the tests run without an end.
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      sandbox[Symbol.dispose]();
      process.exit(1);
    });
  }
  const limits = new TimeLimits(sandbox);
  for (const [index, mutant] of mutants.entries()) {
    if (results.has(mutant.id) || (only === undefined && mutant.id in EQUIVALENT)) continue;
    const result = await judge(mutant, sandbox, limits);
    results.set(mutant.id, result);
    if (values.results !== undefined) appendFileSync(values.results, `${JSON.stringify(result)}\n`);
    const how = result.stage === null ? "LIVES" : `caught by stage ${result.stage}`;
    process.stdout.write(`${index + 1}/${mutants.length}  ${how}  ${describe(mutant)}\n`);
  }
  return summarise(mutants, results, stale);
}

function summarise(mutants: readonly Mutant[], results: ReadonlyMap<string, Result>, stale: readonly string[]): number {
  // What is explained was not run, unless it was asked for by its ID.
  const living = mutants.filter(({ id }) => (results.get(id)?.verdict ?? "lives") === "lives");
  const explained = living.filter(({ id }) => id in EQUIVALENT);
  const unexplained = living.filter(({ id }) => !(id in EQUIVALENT));
  for (const mutant of explained) process.stdout.write(`equivalent  ${describe(mutant)}: ${EQUIVALENT[mutant.id]}\n`);
  for (const mutant of unexplained) process.stdout.write(`NOT NOTICED  ${describe(mutant)}\n`);
  for (const id of stale)
    process.stdout.write(`no such mutant any longer: ${id} in ${relative(root, "tools/mutants/equivalent.ts")}\n`);
  const figures = (of: readonly Mutant[]) => {
    const count = (list: readonly Mutant[]) => list.filter((mutant) => of.includes(mutant)).length;
    const caught = of.length - count(living);
    return `${caught} caught, ${count(explained)} equivalent, ${count(unexplained)} not noticed`;
  };
  for (const part of new Set(mutants.map((mutant) => mutant.part))) {
    process.stdout.write(`${part.name}: ${figures(mutants.filter((mutant) => mutant.part === part))}\n`);
  }
  process.stdout.write(`${figures(mutants)}\n`);
  return unexplained.length > 0 || stale.length > 0 ? 1 : 0;
}

process.exitCode = await main();
