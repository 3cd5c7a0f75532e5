import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArguments, type TestKernelOptions, USAGE } from "./arguments.js";
import { boot, type GuestResult } from "./boot.js";
import { type GuestImage, prepareGuests } from "./image.js";
import { MACHINE_KINDS, type MachineName } from "./machines.js";
import { MissingError } from "./missing.js";

const MINUTE_MS = 60_000;
const TIMEOUT_MS = 15 * MINUTE_MS;
const NIGHTLY_TIMEOUT_MS = 8 * 60 * MINUTE_MS;
/** Of the kernel's log, when something went wrong: its end, or the place where it complained. */
const LINES_SHOWN = 80;
const LINES_BEFORE_COMPLAINT = 10;

/** The built test files of a machine that the filters let through, relative to the project. */
export function testFiles(root: string, machine: MachineName, filters: readonly string[]): readonly string[] {
  const folder = join("dist/test/kernel", MACHINE_KINDS[machine].tests);
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".test.js"))
    .map((name) => join(folder, name))
    .filter((path) => filters.length === 0 || filters.some((filter) => path.includes(filter)))
    .sort();
}

/** Variables of this project's, which the guest sees as the host does, and those that the options stand for. */
function guestEnv(machine: MachineName, options: TestKernelOptions): Record<string, string> {
  const own = Object.entries(process.env).filter(
    (entry): entry is [string, string] =>
      entry[0].startsWith("DIRTMAP_") &&
      !["DIRTMAP_QEMU", "DIRTMAP_TEST_KERNEL"].includes(entry[0]) &&
      entry[1] !== undefined,
  );
  return {
    ...Object.fromEntries(own),
    CI: "true",
    NO_COLOR: "1",
    DIRTMAP_TEST_MACHINE: machine,
    ...(options.nightly ? { DIRTMAP_NIGHTLY: "1" } : {}),
    ...(options.replay.length > 0 ? { DIRTMAP_REPLAY: options.replay.join(",") } : {}),
  };
}

/** Of vitest's JSON report, what is looked at here. */
interface TestResults {
  readonly numPassedTests: number;
}

/**
 * What is wrong with how a guest ended, a line each: nothing only if vitest came to its end and no test failed, and the
 * kernel had nothing to complain of.
 */
export function faults(
  result: Pick<GuestResult, "status" | "timedOut" | "complaints">,
  results: TestResults | undefined,
): readonly string[] {
  const { status, timedOut, complaints } = result;
  return [
    ...(timedOut ? ["the time was up, and it was killed"] : []),
    ...(!timedOut && status === undefined ? ["it ended before the tests did"] : []),
    ...(!timedOut && status !== undefined && status !== 0 ? [`vitest ended with status ${status}`] : []),
    ...(status === 0 && results === undefined ? ["vitest left no results"] : []),
    ...(complaints.length > 0 ? ["its kernel complained:", ...complaints] : []),
  ];
}

/** The part of a kernel's log that tells what went wrong. */
function worthSeeing(lines: readonly string[], [complaint]: readonly string[]): readonly string[] {
  if (complaint === undefined) return lines.slice(-LINES_SHOWN);
  const start = Math.max(0, lines.indexOf(complaint) - LINES_BEFORE_COMPLAINT);
  return lines.slice(start, start + LINES_SHOWN);
}

/** Boots one machine and runs the files in it; returns what went wrong, and how many tests passed. */
async function runTests(
  image: GuestImage,
  machine: MachineName,
  files: readonly string[],
  options: TestKernelOptions,
  signal: AbortSignal,
): Promise<{ readonly wrong: readonly string[]; readonly passed: number }> {
  const share = join(image.folder, machine);
  const result = await boot({
    machine,
    image,
    command: [
      ...["node", "node_modules/vitest/vitest.mjs", "run", "--config", "test/kernel/vitest.config.js"],
      ...["--reporter=default", "--reporter=json", "--outputFile.json=/share/results.json"],
      ...(options.testNamePattern === undefined ? [] : ["-t", options.testNamePattern]),
      ...files,
    ],
    env: guestEnv(machine, options),
    share,
    timeoutMs: options.nightly ? NIGHTLY_TIMEOUT_MS : TIMEOUT_MS,
    output: (text) => process.stdout.write(text),
    signal,
  });
  const written = join(share, "results.json");
  const report = existsSync(written) ? readFileSync(written, "utf8") : undefined;
  if (report !== undefined && options.results !== undefined) {
    mkdirSync(options.results, { recursive: true });
    writeFileSync(join(options.results, `kernel-${machine}.json`), report);
  }
  if (options.kernelLog || result.status === undefined || result.timedOut || result.complaints.length > 0) {
    process.stderr.write(result.qemuErrors);
    const lines = result.kernelLog.trimEnd().split(/\r?\n/);
    const shown = options.kernelLog ? lines : worthSeeing(lines, result.complaints);
    process.stderr.write(shown.map((line) => `  kernel: ${line}\n`).join(""));
  }
  process.stderr.write(`== ${machine}: ${(result.ms / 1000).toFixed(1)} s\n`);
  const results = report === undefined ? undefined : (JSON.parse(report) as TestResults);
  return { wrong: faults(result, results), passed: results?.numPassedTests ?? 0 };
}

/**
 * Runs the tests of test/kernel, one boot a machine.
 * @param root the project's folder, built
 * @param argv the command line, without Node and script
 * @returns the process's exit status
 */
export async function main(root: string, argv: readonly string[], signal: AbortSignal): Promise<number> {
  let options: TestKernelOptions;
  try {
    options = parseArguments(argv);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${USAGE}`);
    return 2;
  }
  if (options.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const runs = options.machines
    .map((machine) => ({ machine, files: testFiles(root, machine, options.filters) }))
    .filter(({ files }) => files.length > 0);
  if (runs.length === 0) {
    process.stderr.write("test:kernel: no test file matches\n");
    return 1;
  }

  try {
    using image = prepareGuests(
      root,
      runs.map(({ machine }) => machine),
    );
    let failed = false;
    let ran = 0;
    for (const { machine, files } of runs) {
      process.stderr.write(`\n== ${machine}: ${files.length} test files, ${image.kernel} in ${image.qemu.from}\n`);
      const { wrong, passed } = await runTests(image, machine, files, options, signal);
      if (signal.aborted) return 130;
      // With a pattern of names, a machine without a match is no fault.
      const idle = passed === 0 && options.testNamePattern === undefined;
      for (const line of idle ? [...wrong, "no test passed"] : wrong) process.stderr.write(`${machine}: ${line}\n`);
      failed ||= idle || wrong.length > 0;
      ran += passed;
    }
    if (ran === 0) process.stderr.write("test:kernel: no test passed\n");
    return failed || ran === 0 ? 1 : 0;
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    // Who names a piece, or runs this in CI, wants no silence where it is missing.
    const required = process.env.CI || process.env.DIRTMAP_QEMU || process.env.DIRTMAP_TEST_KERNEL;
    process.stderr.write(`test:kernel ${required ? "failed" : "skipped"}: ${error.message}\n`);
    return required ? 1 : 0;
  }
}
