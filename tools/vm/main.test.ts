import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { faults, testFiles } from "./main.js";

const PASSED = { numPassedTests: 3 };
const GOOD = { status: 0, timedOut: false, complaints: [] };

test("a run is good if vitest says so, a test passed, and the kernel is content", () => {
  expect(faults(GOOD, PASSED)).toEqual([]);
});

test.each([
  ["a failed test", { ...GOOD, status: 1 }, PASSED, "vitest ended with status 1"],
  ["a guest that died", { ...GOOD, status: undefined }, undefined, "it ended before the tests did"],
  [
    "a guest that hung",
    { ...GOOD, status: undefined, timedOut: true },
    undefined,
    "the time was up, and it was killed",
  ],
  ["tests that hung", { ...GOOD, status: 137, timedOut: true }, undefined, "the time was up, and it was killed"],
  ["results that are missing", GOOD, undefined, "vitest left no results"],
])("%s is a fault", (_, result, results, fault) => {
  expect(faults(result, results)).toEqual([fault]);
});

test("what the kernel complained of is a fault even if all tests passed, and is shown", () => {
  expect(faults({ ...GOOD, complaints: ["BUG: one", "WARNING: two"] }, PASSED)).toEqual([
    "its kernel complained:",
    "BUG: one",
    "WARNING: two",
  ]);
});

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-files-"));
  for (const file of ["mock/b.test.js", "mock/deep/a.test.js", "mock/fixture.js", "pci/b.test.js"]) {
    const path = join(root, "dist/test/kernel", file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, "");
  }
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

test("a machine runs the test files for its kind, in order", () => {
  expect(testFiles(root, "mock", [])).toEqual([
    "dist/test/kernel/mock/b.test.js",
    "dist/test/kernel/mock/deep/a.test.js",
  ]);
  for (const machine of ["intel", "amd"] as const) {
    expect(testFiles(root, machine, [])).toEqual(["dist/test/kernel/pci/b.test.js"]);
  }
});

test("a filter is a part of the path, and one of several is enough", () => {
  expect(testFiles(root, "mock", ["deep/"])).toEqual(["dist/test/kernel/mock/deep/a.test.js"]);
  expect(testFiles(root, "mock", ["deep/", "b.test"])).toHaveLength(2);
  expect(testFiles(root, "intel", ["deep/"])).toEqual([]);
});
