import { describe, expect, it } from "vitest";
import { DirtmapError, UsageError } from "../errors.js";
import { EXIT_CODES, exitCodeOf, exitCodeOfError, exitCodeOfWatched, exitCodesHelp } from "./exit-codes.js";

describe("exit codes", () => {
  it.each([
    ["completed", true, 0],
    ["completed", false, 1],
    ["completed", null, 1],
    ["failed", null, 1],
    ["cancelled", null, 130],
    ["indeterminate", null, 3],
  ] as const)("a migration that is %s, verified %s, ends with %d", (result, verified, code) => {
    expect(exitCodeOf({ result, verified })).toBe(code);
  });

  it("a migration that the operator gave up ends as one that failed: nothing waits for a decision", () => {
    const error = { code: "GIVEN_UP", message: "given up" };
    expect(exitCodeOf({ result: "indeterminate", verified: null, error })).toBe(EXIT_CODES.failed.code);
  });

  it.each([
    ["completed", undefined, 0],
    ["failed", "QEMU_MIGRATION_FAILED", 1],
    ["cancelled", "CANCELLED", 1],
    ["indeterminate", "QEMU_LOST", 3],
    ["indeterminate", "WATCH_ENDED", 130],
  ] as const)("a migration that was watched and is %s, with error %s, ends with %d", (result, error, code) => {
    const why = error === undefined ? {} : { error: { code: error, message: "" } };
    expect(exitCodeOfWatched({ result, ...why })).toBe(code);
  });

  it("tell wrong usage from failure and from cancelling", () => {
    expect(exitCodeOfError(new UsageError("no", { code: "X" }))).toBe(2);
    expect(exitCodeOfError(new DirtmapError("no", { code: "X" }))).toBe(1);
    expect(exitCodeOfError(new TypeError("a bug"))).toBe(1);
    expect(exitCodeOfError(AbortSignal.abort().reason)).toBe(130);
  });

  it("are all different, and all in the help", () => {
    const codes = Object.values(EXIT_CODES).map(({ code }) => code);
    expect(new Set(codes).size).toBe(codes.length);
    for (const code of codes) expect(exitCodesHelp()).toMatch(new RegExp(`^ +${code}  \\S`, "m"));
  });
});
