import { readdirSync } from "node:fs";
import { basename, dirname, isAbsolute, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  type Node,
  parseDocument,
  visit,
  YAMLParseError,
} from "yaml";
import { z } from "zod";
import { DEFAULTS } from "../defaults.js";
import { explain, UsageError } from "../errors.js";
import { type MachineDescription, machineSchema } from "../host/description.js";
import { suggest } from "../nearest.js";
import { decodeText, readStart } from "../sys/input-file.js";
import {
  DESIGNS,
  DEVICE_TRACKERS,
  DOMAINS,
  DOWNTIME_LIMIT_MS,
  isMeasured,
  MAX_CHANNELS,
  MEASURED,
  POLICY_ORDERS,
  UNMEASURED,
  UNTRACKED,
} from "./choices.js";
import { issueText } from "./issue.js";
import { withQuantities } from "./quantities.js";
import { beginsTrace, isCalledTrace, traceScenario } from "./trace.js";

/*
 * A scenario: a machine with its workload, and how it is to be migrated unless the command line says otherwise. YAML,
 * in which sizes, durations and bandwidths are written as on the command line.
 */

/** A scenario is a page of text, of 256 devices some 100 KiB; what is longer is another kind of file. */
const MAX_SCENARIO_BYTES = 1 << 18;
/** Of YAML's lexer: 256 devices, written at length, have some 20 000. */
const MAX_TOKENS = 1 << 16;
/** Once aliases are followed: each use of an anchor counts. */
const MAX_VALUES = 1 << 16;
/** Named one by one; the others when these are mended. */
const MAX_PROBLEMS = 10;

const migrationSchema = z.strictObject({
  policy: z
    .union(
      [z.enum(POLICY_ORDERS), z.templateLiteral([MEASURED, z.string().min(1)]).meta({ title: `${MEASURED}FILE` })],
      { error: `write ${POLICY_ORDERS.join(", ")}, or ${MEASURED}FILE` },
    )
    .default(DEFAULTS.policy)
    .describe("order in which trackers are considered, or a file that `dirtmap recommend` or `bench trackers` wrote"),
  unmeasured: z
    .enum(UNMEASURED)
    .default(DEFAULTS.unmeasured)
    .describe("with a measured policy: order for devices that the file does not have, or refuse them"),
  trackers: z
    .record(z.string(), z.enum(DEVICE_TRACKERS))
    .default({})
    .describe("tracker per device, whatever the policy says"),
  granules: z.record(z.string(), z.int().min(1)).default({}).describe("size that one dirty bit stands for, per device"),
  domain: z
    .enum(DOMAINS)
    .default(DEFAULTS.domain)
    .describe("HWPTs of the devices that the IOMMU tracks: one each, or shared"),
  untracked: z
    .enum(UNTRACKED)
    .default(DEFAULTS.untracked)
    .describe("devices without a tracker: count everything they may write, suspend them, or refuse to migrate"),
  untrackedDevices: z.record(z.string(), z.enum(UNTRACKED)).default({}).describe("the same, per device"),
  design: z
    .enum(DESIGNS)
    .default(DEFAULTS.design)
    .describe("where the trackers' answers are merged: in userspace (split), or in the kernel in one of three ways"),
  downtimeLimit: z
    .number()
    .min(DOWNTIME_LIMIT_MS.min)
    .max(DOWNTIME_LIMIT_MS.max)
    .default(DEFAULTS.downtimeLimitMs)
    .describe("expected downtime at which the machine may be stopped"),
  bandwidth: z.number().min(1).optional().describe("limit of the link; absent: unlimited"),
  channels: z
    .int()
    .min(1)
    .max(MAX_CHANNELS)
    .default(DEFAULTS.channels)
    .meta({ description: "connections that pages travel over", unit: "connections" }),
  runAfter: z
    .number()
    .min(0)
    .max(3_600_000)
    .default(DEFAULTS.runAfterMs)
    .describe("time that the workload runs at the destination before it is checked"),
});

/** Checks a scenario whose quantities are numbers already, and fills in what it leaves out. */
export const scenarioSchema = z
  .strictObject({
    summary: z.string().max(200).default("").describe("one line for `dirtmap scenarios`"),
    machine: machineSchema.describe("the machine and its workload"),
    migration: migrationSchema.prefault({}).describe("how to migrate it; options of the command line override it"),
  })
  .superRefine((scenario, context) => {
    const devices = scenario.machine.devices.map(({ id }) => id);
    for (const field of ["trackers", "granules", "untrackedDevices"] as const) {
      for (const device of Object.keys(scenario.migration[field])) {
        if (devices.includes(device)) continue;
        const message = `there is no device '${device}'; ${suggest(device, devices)}`;
        context.addIssue({ code: "custom", path: ["migration", field, device], message });
      }
    }
  });

/** A scenario's settings for the migration of its machine. Durations are milliseconds, sizes are bytes. */
export type MigrationDefaults = z.output<typeof migrationSchema>;

/** A checked scenario. */
export interface Scenario {
  readonly name: string;
  readonly summary: string;
  readonly machine: MachineDescription;
  readonly migration: MigrationDefaults;
}

const SCENARIOS = fileURLToPath(new URL("../../../scenarios/", import.meta.url));

/** Returns the names of the scenarios that come with Dirtmap, sorted. */
export function scenarioNames(): string[] {
  return readdirSync(SCENARIOS)
    .filter((file) => file.endsWith(".yaml"))
    .map((file) => basename(file, ".yaml"))
    .sort();
}

/**
 * Reads a scenario: by its name if it comes with Dirtmap, or by the path of a file (with a slash, or ending in .yaml or .yml).
 * A trace (.dtrc) is also a scenario, of a machine that repeats the recorded writes.
 * @throws UsageError `UNKNOWN_SCENARIO`, or `BAD_SCENARIO` with file, line, column and field
 */
export function loadScenario(nameOrFile: string): Scenario {
  const isFile = nameOrFile.includes("/") || /\.(ya?ml|dtrc)$/.test(nameOrFile);
  const names = isFile ? [] : scenarioNames();
  if (!isFile && !names.includes(nameOrFile)) {
    throw new UsageError(`there is no scenario '${nameOrFile}'`, {
      code: "UNKNOWN_SCENARIO",
      remedy: `${suggest(nameOrFile, names)}; or give a file's path`,
    });
  }
  const path = resolve(isFile ? nameOrFile : `${SCENARIOS}${nameOrFile}.yaml`);
  if (isFile && isCalledTrace(path)) return ofTrace(path);
  let text: string;
  try {
    const start = readStart(path, MAX_SCENARIO_BYTES + 1);
    if (beginsTrace(start)) return ofTrace(path);
    if (start.length > MAX_SCENARIO_BYTES) throw new Error(`a scenario has at most ${MAX_SCENARIO_BYTES} bytes`);
    text = decodeText(start);
  } catch (cause) {
    throw new UsageError(`can't read the scenario ${nameOrFile}: ${explain(cause)}`, {
      code: "UNKNOWN_SCENARIO",
      cause,
    });
  }
  const shown = relative(process.cwd(), path);
  return parseScenario(text, {
    file: shown.startsWith("../../..") ? path : shown,
    folder: dirname(path),
  });
}

function ofTrace(path: string): Scenario {
  const { summary, machine, migration } = scenarioSchema.parse(traceScenario(path));
  return { name: basename(path), summary, machine, migration };
}

/**
 * Checks a scenario's text.
 * @param source.file the name of the text in messages
 * @param source.folder the folder to which its paths are relative
 * @throws UsageError `BAD_SCENARIO`: a line with file, line, column and field for each of the first problems
 */
export function parseScenario(text: string, { file, folder }: { file: string; folder: string }): Scenario {
  const lines = new LineCounter();
  const document = parseYaml(text, file, lines);
  const [error] = document.errors;
  if (error !== undefined) {
    throw refusal(
      document.errors
        .slice(0, MAX_PROBLEMS)
        .map(({ pos: [offset], message }) => `${placeOf(offset)}: not valid YAML: ${message}`),
      document.errors.length,
    );
  }

  const issues: { path: readonly PropertyKey[]; text: string }[] = [];
  let plain: unknown;
  try {
    plain = document.toJS();
    checkSize(plain);
    plain = withQuantities(plain, [], issues);
  } catch (cause) {
    throw refusal([`${placeOf(0)}: ${explain(cause)}`]);
  }
  const parsed = scenarioSchema.safeParse(plain);
  let problems = issues.length;
  if (problems === 0 && parsed.error !== undefined) {
    const found = eachProblem(parsed.error.issues);
    problems = found.length;
    for (const issue of found.slice(0, MAX_PROBLEMS)) issues.push(issueText(issue, plain, scenarioSchema));
  }
  if (problems > 0) {
    throw refusal(
      issues.slice(0, MAX_PROBLEMS).map(({ path, text: problem }) => {
        const place = placeOf(offsetOf(document.contents, path));
        return path.length === 0 ? `${place}: ${problem}` : `${place}: ${fieldOf(path)}: ${problem}`;
      }),
      problems,
    );
  }
  const { summary, machine, migration } = parsed.data as z.output<typeof scenarioSchema>;
  for (const device of machine.devices) {
    for (const field of ["socket", "destinationSocket"] as const) {
      const path = device[field];
      if (path !== undefined) device[field] = resolve(folder, path);
    }
    if (device.model === "replay") device.trace = resolve(folder, device.trace);
    const hasFile = device.model === "blk" || device.model === "nvme";
    if (hasFile && device.file !== undefined && !isAbsolute(device.file)) {
      device.file = resolve(folder, device.file);
    }
  }
  if (isMeasured(migration.policy)) {
    migration.policy = `${MEASURED}${resolve(folder, migration.policy.slice(MEASURED.length))}`;
  }
  return { name: basename(file).replace(/\.ya?ml$/, ""), summary, machine, migration };

  function placeOf(offset: number): string {
    const { line, col } = lines.linePos(offset);
    return `${file}:${line}:${col}`;
  }

  /** Where the deepest part of a path that exists stands: a field's name, or an entry of a list. */
  function offsetOf(root: Node | null, path: readonly PropertyKey[]): number {
    let node: unknown = root;
    let offset = root?.range?.[0] ?? 0;
    for (const part of path) {
      if (isAlias(node)) node = node.resolve(document);
      if (isMap(node)) {
        const pair = node.items.find(({ key }) => isScalar(key) && key.value === part);
        if (!isScalar(pair?.key)) break;
        offset = pair.key.range?.[0] ?? offset;
        node = pair.value;
      } else if (isSeq(node) && typeof part === "number") {
        node = node.items[part];
        offset = (node as Node | undefined)?.range?.[0] ?? offset;
      } else break;
    }
    return offset;
  }
}

/** @throws UsageError `BAD_SCENARIO` for what would take long to parse, or can't be */
function parseYaml(text: string, file: string, lines: LineCounter): Document.Parsed {
  if (text.length > MAX_SCENARIO_BYTES) throw refusal([`${file}: it has more than ${MAX_SCENARIO_BYTES} bytes`]);
  let tokens = 0;
  for (const _token of new Lexer().lex(text)) {
    if (++tokens > MAX_TOKENS) throw refusal([`${file}: it has more than ${MAX_TOKENS} words and marks of YAML`]);
  }
  // The parser compares each key of a block with all before it, which takes the square of their number.
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false });
  // The parser calls itself for each level.
  const tooDeep = document.errors.some(({ code }) => code === "RESOURCE_EXHAUSTION");
  if (tooDeep) throw refusal([`${file}: its blocks are nested too deeply`]);
  visit(document, {
    Map(_, { items }) {
      const keys = new Set<unknown>();
      for (const { key } of items) {
        if (!isScalar(key)) continue;
        const [start, end] = key.range ?? [0, 0];
        if (keys.has(key.value)) {
          document.errors.push(
            new YAMLParseError([start, end], "DUPLICATE_KEY", `'${String(key.value)}' is there twice`),
          );
        }
        keys.add(key.value);
      }
    },
  });
  return document;
}

/** @throws Error for more values than a scenario may have: aliases that stand for aliases multiply */
function checkSize(value: unknown): void {
  const left = [value];
  for (let values = 0; left.length > 0; values++) {
    if (values > MAX_VALUES) throw new Error(`it has more than ${MAX_VALUES} values, each use of an alias counted`);
    const next = left.pop();
    if (typeof next === "object" && next !== null) for (const each of Object.values(next)) left.push(each);
  }
}

/** One for each unknown field; these first, since a misspelt field is also a missing one. */
function eachProblem(issues: readonly z.core.$ZodIssue[]): z.core.$ZodIssue[] {
  const all = issues.flatMap((issue): z.core.$ZodIssue[] =>
    issue.code === "unrecognized_keys" ? issue.keys.map((key) => ({ ...issue, keys: [key] })) : [issue],
  );
  return all.sort((a, b) => Number(b.code === "unrecognized_keys") - Number(a.code === "unrecognized_keys"));
}

/** `machine.devices[0].model` */
function fieldOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (all, part) =>
      typeof part === "number" ? `${all}[${part}]` : all === "" ? String(part) : `${all}.${String(part)}`,
    "",
  );
}

/** @param count of all problems, of which these are the first */
function refusal([first, ...further]: readonly string[], count = 1): UsageError {
  const more = count - 1;
  const unnamed = more - further.length;
  return new UsageError(more === 0 ? first : `${first} (and ${more} more problem${more === 1 ? "" : "s"})`, {
    code: "BAD_SCENARIO",
    further: unnamed === 0 ? further : [...further, `${unnamed} more are named once these are mended`],
  });
}
