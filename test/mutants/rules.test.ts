import { describe, expect, it } from "vitest";
import { mutated, mutationsOf } from "./rules.js";

function mutantsOf(source: string): string[] {
  return mutationsOf(source).map((mutation) => `${mutation.rule}: ${mutated(source, mutation)}`);
}

describe("the rules that make mutants", () => {
  it("move a bound by one, and turn a comparison round", () => {
    expect(mutantsOf("f = a < b")).toContain("< to <=: f = (a) <= (b)");
    expect(mutantsOf("f = a < b")).toContain("< to >=: f = (a) >= (b)");
  });

  it("keep the meaning of what stands around an operator", () => {
    expect(mutantsOf("f = a + b << c")).toContain("<< to >>>: f = (a + b) >>> (c)");
  });

  it("do not move a bound by one where both sides are then the same", () => {
    const clamp = mutantsOf("if (a < b) a = b;");
    expect(clamp).toContain("< to >=: if ((a) >= (b)) a = b;");
    expect(clamp).not.toContain("< to <=: if ((a) <= (b)) a = b;");
    expect(mutantsOf("if (a >= b) a = c;")).toContain(">= to >: if ((a) > (b)) a = c;");
  });

  it("make a condition always true, and always false", () => {
    expect(mutantsOf("if (late) stop();")).toEqual([
      "condition to true: if (true) stop();",
      "condition to false: if (false) stop();",
      "statement removed: if (late) ;",
    ]);
  });

  it("never make a loop that can't end by itself", () => {
    expect(mutantsOf("while (more()) step();")).not.toContain("condition to true: while (true) step();");
  });

  it("take an atomic exchange apart", () => {
    expect(mutantsOf("f(Atomics.exchange(words, at, 0))")).toContain(
      "plain exchange: f(((old) => { words[at] = 0; return old; })(words[at]))",
    );
  });

  it("leave the words of an error alone", () => {
    expect(mutantsOf("new TypeError(a + b, { code: !c })")).toEqual([]);
  });

  it("leave alone what is worked out for the words of an error", () => {
    expect(mutantsOf("const why = a + b; throw new Error(why)")).toEqual(["throw removed: const why = a + b; ;"]);
    expect(mutantsOf("const why = a + b; throw new Error(why, f(why)), why")).toContain(
      "+ to -: const why = (a) - (b); throw new Error(why, f(why)), why",
    );
  });

  it("name a mutant the same when lines before it come or go, and each one differently", () => {
    const before = mutationsOf("if (a < 1) b(); if (a < 1) b();");
    const after = mutationsOf("// a line\n\nif (a < 1) b(); if (a < 1) b();");
    expect(after.map(({ id }) => id)).toEqual(before.map(({ id }) => id));
    expect(new Set(before.map(({ id }) => id)).size).toBe(before.length);
  });
});
