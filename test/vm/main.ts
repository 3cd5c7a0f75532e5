import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArguments, type TestKernelOptions, USAGE } from "./arguments.js";
import { boot, type GuestResult } from "./boot.js";
import { makeInitramfs } from "./initramfs.js";
import { findKernel } from "./kernel-image.js";
import { COMMON_NEEDS, MACHINE_KINDS, type MachineName } from "./machines.js";
import { MissingError } from "./missing.js";
import { findQemu } from "./qemu.js";

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

/** What is wrong with how a guest ended, in a sentence each. */
function faults(result: GuestResult, resultsWritten: boolean): readonly string[] {
  return [
    ...(result.timedOut ? ["the time was up, and it was killed"] : []),
    ...(!result.timedOut && result.status === undefined ? ["it ended before the tests did"] : []),
    ...(result.status !== undefined && result.status !== 0 ? [`vitest ended with status ${result.status}`] : []),
    ...(result.status !== undefined && !resultsWritten ? ["vitest left no results"] : []),
    ...(result.complaints.length > 0 ? ["its kernel complained:", ...result.complaints] : []),
  ];
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

  const work = mkdtempSync(join(tmpdir(), "dirtmap-kernel-"));
  try {
    const kernel = findKernel(root);
    const needs = [...COMMON_NEEDS, ...runs.flatMap(({ machine }) => MACHINE_KINDS[machine].needs)];
    const qemu = findQemu({ needs });
    const initramfs = makeInitramfs(root, work);
    let failed = false;
    for (const { machine, files } of runs) {
      process.stderr.write(`\n== ${machine}: ${files.length} test files, ${kernel} in ${qemu.from}\n`);
      const share = join(work, machine);
      const result = await boot({
        machine,
        qemu,
        kernel,
        initramfs,
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
      if (signal.aborted) return 130;
      const results = join(share, "results.json");
      const written = existsSync(results);
      if (written && options.results !== undefined) {
        mkdirSync(options.results, { recursive: true });
        writeFileSync(join(options.results, `kernel-${machine}.json`), readFileSync(results));
      }
      const wrong = faults(result, written);
      if (options.kernelLog || result.status === undefined || result.complaints.length > 0) {
        const lines = result.kernelLog.trimEnd().split(/\r?\n/);
        const shown = options.kernelLog ? lines : lines.slice(-LINES_SHOWN);
        process.stderr.write(`${result.qemuErrors}${shown.map((line) => `  kernel: ${line}`).join("\n")}\n`);
      }
      for (const line of wrong) process.stderr.write(`${machine}: ${line}\n`);
      process.stderr.write(`== ${machine}: ${(result.ms / 1000).toFixed(1)} s\n`);
      failed ||= wrong.length > 0;
    }
    return failed ? 1 : 0;
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    process.stderr.write(`test:kernel ${process.env.CI ? "failed" : "skipped"}: ${error.message}\n`);
    return process.env.CI ? 1 : 0;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
