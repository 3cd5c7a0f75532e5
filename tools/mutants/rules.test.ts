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

  it("leave a shift by nothing as it is, and a bound on the clock at its place", () => {
    expect(mutantsOf("(a >>> 0)")).toEqual(["0 or 1 exchanged: (a >>> 1)"]);
    expect(mutantsOf("(a >>> 3)")).toEqual([">>> to <<: ((a) << (3))"]);
    expect(mutantsOf("(performance.now() > until)")).toEqual(["> to <=: ((performance.now()) <= (until))"]);
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

  it("keep an await whose promise would be returned all the same", () => {
    const awaits = (source: string) => mutantsOf(source).filter((mutant) => mutant.startsWith("await removed"));
    expect(awaits("async function f() { return await g(); }")).toEqual([]);
    expect(awaits("f = async () => await g();")).toEqual([]);
    expect(awaits("async function f() { try { return await g(); } finally { h(); } }")).toHaveLength(1);
    expect(awaits("async function f() { try { h(async () => await g()); } finally { h(); } }")).toEqual([]);
    expect(awaits("async function f() { const x = await g(); return [await h()]; }")).toHaveLength(2);
  });

  it("keep a break that leads where the next one does", () => {
    const source = (more: string) => `switch (a) { case b: f(); break; case c: case d: ${more} break; }`;
    const breaks = (source: string) => mutantsOf(source).filter((mutant) => mutant.startsWith("break removed"));
    expect(breaks(source(""))).toEqual([]);
    expect(breaks(source("g();"))).toEqual([
      "break removed: switch (a) { case b: f(); ; case c: case d: g(); break; }",
    ]);
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
