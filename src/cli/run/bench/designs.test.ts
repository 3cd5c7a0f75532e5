import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { dirtmap } from "../../../../test/support/program.js";
import { parseXml } from "../../../evidence/plot/well-formed.test.helper.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const bench = (...args: readonly string[]) => dirtmap(["bench", "designs", ...args], { limitMs: 200_000 });

const SMALL = ["--workload", "b", "--devices", "1,2", "--memory", "16M", "--repetitions", "1", "--migrate", "0"];

describe("dirtmap bench designs", () => {
  it("measures, keeps the result in a file and in the store, and draws it", { timeout: 300_000 }, async () => {
    const output = join(folder, "designs.json");
    const report = join(folder, "designs.html");
    const figures = join(folder, "figures");
    const store = join(folder, "evidence.db");
    const files = ["--output", output, "--report", report, "--figures", figures, "--store", store];
    const { code, stdout, stderr } = await bench(...SMALL, ...files);
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringContaining("kept as benchmark 1") });
    expect(stdout).toContain("case b: the thread's case b");
    expect(stdout).toContain(
      "calls per read: split against type1, aggregated, iterating: never cross; equal at 1; ×2 at 2; apart from 2 on",
    );
    expect(stdout).toContain("no figure is a hardware's or a kernel's");
    expect(readFileSync(report, "utf8")).toMatch(/^<!DOCTYPE html>[\s\S]*<svg /);
    expect(parseXml(readFileSync(join(figures, "cpu-case-b.svg"), "utf8")).name).toBe("svg");

    const again = await bench("--from", output, "--json", "--quiet");
    expect(again).toMatchObject({ code: 0, stderr: "" });
    // Comparisons are made anew, of the figures as they were kept: ratios differ in the fifth digit.
    const withoutComparisons = (text: string) => ({ ...JSON.parse(text), crossings: [] });
    expect(withoutComparisons(again.stdout)).toEqual(withoutComparisons(readFileSync(output, "utf8")));
    expect(JSON.parse(again.stdout)).toMatchObject({ schemaVersion: 1, kind: "designs", migrations: [] });
  });

  it.each([
    [["--devices", "0"], "give numbers from 1 to 64"],
    [["--devices", "1,65"], "give numbers from 1 to 64"],
    [["--devices", "1,,2"], "give numbers from 1 to 64"],
    [["--devices", "many"], "give numbers from 1 to 64"],
    [["--workload", "d"], "there is no workload 'd'"],
    [["--memory", "8M", "--devices", "64"], "give the machine more memory"],
    [["--repetitions", "0"], "give 1 to"],
    [["--report", "designs.pdf"], ".md or .html"],
    [["--from", "/nowhere.json"], "give a file that `dirtmap bench designs --output FILE` wrote"],
    [["--bandwidth", "fast"], "--bandwidth"],
  ])("refuses %j in one line that says what would work", { timeout: 60_000 }, async (args, words) => {
    const { code, stdout, stderr } = await bench("--no-store", ...args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(/^dirtmap: [^\n]*\n$/);
    expect(stderr).toContain(words);
  });

  it("refuses a store that is none, and a file that can't be written, before it measures", async () => {
    const notOne = join(folder, "not-a-store.db");
    writeFileSync(
      notOne,
      "no database at all, but some text that is long enough to be read as a header of one\n".repeat(4),
    );
    expect((await bench(...SMALL, "--store", notOne)).code).toBe(2);
    const nowhere = join(notOne, "result.json");
    const { code, stderr } = await bench(...SMALL, "--no-store", "--output", nowhere);
    expect(code).toBe(2);
    expect(stderr).toContain(`can't write to ${notOne}`);
    expect(stderr).not.toContain("reads:");
    expect(existsSync(nowhere)).toBe(false);
  });
});
