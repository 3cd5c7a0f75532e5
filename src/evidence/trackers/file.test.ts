import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { UsageError } from "../../errors.js";
import { fakeBenchmark, fakeDevice } from "../recommend/fake-benchmark.test.helper.js";
import { checkBenchmark, readBenchmark, writeBenchmark } from "./file.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-benchmark-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const benchmark = fakeBenchmark([fakeDevice("vf0", [{ tracker: "iommu" }, { tracker: "device", granule: 65536 }])]);
const text = JSON.stringify(benchmark);

function refusal(content: string): UsageError {
  const path = join(folder, "refused.json");
  writeFileSync(path, content);
  try {
    readBenchmark(path);
  } catch (error) {
    if (error instanceof UsageError) return error;
    throw error;
  }
  throw new Error("it was read");
}

describe("a benchmark's file", () => {
  it("reads as it was written", () => {
    const path = join(folder, "written.json");
    writeBenchmark(path, benchmark);
    expect(readBenchmark(path)).toEqual(benchmark);
  });

  it.each([
    ["an empty file", "", "BAD_BENCHMARK", /: it is empty$/],
    ["one that is no JSON", "scenario: mixed\n", "BAD_BENCHMARK", /: it is no JSON, or cut short$/],
    ["one that was cut short", text.slice(0, text.length / 2), "BAD_BENCHMARK", /cut short$/],
    ["a number", "1", "BAD_BENCHMARK", /refused\.json is no benchmark of trackers, or damaged: /],
    [
      "one of a newer version",
      JSON.stringify({ ...benchmark, schemaVersion: 2 }),
      "BENCHMARK_TOO_NEW",
      /has version 2, and this Dirtmap knows 1 and older$/,
    ],
    [
      "one of designs",
      JSON.stringify({ ...benchmark, kind: "designs" }),
      "BAD_BENCHMARK",
      /is a benchmark of designs, not of trackers$/,
    ],
    [
      "a negative time, with its field",
      text.replace('"median":0.1', '"median":-0.1'),
      "BAD_BENCHMARK",
      /: devices\.0\.trackers\.0\.attach\.median: /,
    ],
    [
      "a device that is there twice",
      JSON.stringify({ ...benchmark, devices: [...benchmark.devices, ...benchmark.devices] }),
      "BAD_BENCHMARK",
      /the device 'vf0' is there twice$/,
    ],
  ])("is refused in one line: %s", (_, content, code, message) => {
    const error = refusal(content);
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    expect(error.message).not.toContain("\n");
    expect(error.remedy).toBeDefined();
  });

  it("that is not there names the command that makes one", () => {
    const missing = () => readBenchmark(join(folder, "none.json"));
    expect(missing).toThrow(
      expect.objectContaining({ code: "NO_BENCHMARK", remedy: expect.stringContaining("bench") }),
    );
  });

  it("that can't be written says why", () => {
    const unwriteable = () => writeBenchmark("/proc/no/folder.json", benchmark);
    expect(unwriteable).toThrow(expect.objectContaining({ code: "CANNOT_WRITE" }));
  });

  it("damaged anywhere is refused with a UsageError, or is still a benchmark", () => {
    fc.assert(
      fc.property(fc.nat(text.length - 1), fc.string({ minLength: 0, maxLength: 4 }), fc.nat(20), (at, put, cut) => {
        const damaged = text.slice(0, at) + put + text.slice(at + cut);
        let value: unknown;
        try {
          value = JSON.parse(damaged);
        } catch {
          return;
        }
        try {
          checkBenchmark(value, "a file");
        } catch (error) {
          expect(error).toBeInstanceOf(UsageError);
        }
      }),
      { numRuns: 500 },
    );
  });
});
