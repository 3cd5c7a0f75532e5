import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArguments, type TestKernelOptions, USAGE } from "./arguments.js";
import { boot, type GuestResult } from "./boot.js";
import { type GuestImage, prepareGuests } from "./image.js";
import type { MachineName } from "./machines.js";
import { MissingError } from "./missing.js";

const MINUTE_MS = 60_000;
const TIMEOUT_MS = 10 * MINUTE_MS;
const NIGHTLY_TIMEOUT_MS = 8 * 60 * MINUTE_MS;
/** Of the kernel's log, when something went wrong. */
const LINES_SHOWN = 80;

/** The built test files of a machine that the filters let through, relative to the project. */
export function testFiles(root: string, machine: MachineName, filters: readonly string[]): readonly string[] {
  const folder = join("dist/test/kernel", machine);
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

/**
 * What is wrong with how a guest ended, a line each: nothing only if the tests ran to their end and passed, and its
 * kernel had nothing to complain of.
 */
export function faults(
  result: Pick<GuestResult, "status" | "timedOut" | "complaints">,
  results: { readonly numPassedTests: number } | undefined,
): readonly string[] {
  const { status, timedOut, complaints } = result;
  return [
    ...(timedOut ? ["the time was up, and it was killed"] : []),
    ...(!timedOut && status === undefined ? ["it ended before the tests did"] : []),
    ...(!timedOut && status !== undefined && status !== 0 ? [`vitest ended with status ${status}`] : []),
    ...(status === 0 && results === undefined ? ["vitest left no results"] : []),
    ...(results?.numPassedTests === 0 ? ["no test passed"] : []),
    ...(complaints.length > 0 ? ["its kernel complained:", ...complaints] : []),
  ];
}

/** Boots one machine and runs the files in it; returns what went wrong. */
async function runTests(
  image: GuestImage,
  machine: MachineName,
  files: readonly string[],
  options: TestKernelOptions,
  signal: AbortSignal,
): Promise<readonly string[]> {
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
  const results = existsSync(written) ? readFileSync(written, "utf8") : undefined;
  if (results !== undefined && options.results !== undefined) {
    mkdirSync(options.results, { recursive: true });
    writeFileSync(join(options.results, `kernel-${machine}.json`), results);
  }
  process.stderr.write(result.qemuErrors);
  if (options.kernelLog || result.status === undefined || result.complaints.length > 0) {
    const lines = result.kernelLog.trimEnd().split(/\r?\n/);
    const shown = options.kernelLog ? lines : lines.slice(-LINES_SHOWN);
    process.stderr.write(shown.map((line) => `  kernel: ${line}\n`).join(""));
  }
  process.stderr.write(`== ${machine}: ${(result.ms / 1000).toFixed(1)} s\n`);
  return faults(result, results === undefined ? undefined : (JSON.parse(results) as { numPassedTests: number }));
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
    for (const { machine, files } of runs) {
      process.stderr.write(`\n== ${machine}: ${files.length} test files, ${image.kernel} in ${image.qemu.from}\n`);
      const wrong = await runTests(image, machine, files, options, signal);
      if (signal.aborted) return 130;
      for (const line of wrong) process.stderr.write(`${machine}: ${line}\n`);
      failed ||= wrong.length > 0;
    }
    return failed ? 1 : 0;
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    process.stderr.write(`test:kernel ${process.env.CI ? "failed" : "skipped"}: ${error.message}\n`);
    return process.env.CI ? 1 : 0;
  }
}
