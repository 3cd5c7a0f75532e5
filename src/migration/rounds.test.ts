import { describe, expect, it } from "vitest";
import { RoundSequence } from "./rounds.js";

const begin = (round: number, phase: "pre-copy" | "stop-copy" = "pre-copy", pages = 3) =>
  ({ type: "ROUND_BEGIN", round, phase, pages }) as const;
const end = (round: number, pages = 3) => ({ type: "ROUND_END", round, pages, zeroPages: 0, bytes: 0 }) as const;

/** Rounds of pre-copy, begun and ended. */
function ofPreCopy(preCopy: number): RoundSequence {
  const rounds = new RoundSequence();
  for (let round = 0; round < preCopy; round++) {
    rounds.begin(begin(round));
    rounds.end(end(round));
  }
  return rounds;
}

const refused = expect.objectContaining({ code: "UNEXPECTED_MESSAGE" });

describe("the rounds of a migration", () => {
  it.each([0, 1, 2])("are %i of pre-copy, then the last one of stop-copy", (preCopy) => {
    const rounds = ofPreCopy(preCopy);
    rounds.begin(begin(preCopy, "stop-copy"));
    rounds.end(end(preCopy));
    expect(() => rounds.finish(preCopy)).not.toThrow();
  });

  it.each([-1, 1])("do not begin with a round %i off", (off) => {
    for (const preCopy of [0, 1, 2]) expect(() => ofPreCopy(preCopy).begin(begin(preCopy + off))).toThrow(refused);
  });

  it("do not begin before the one before has ended, nor after the last", () => {
    const open = ofPreCopy(0);
    open.begin(begin(0));
    expect(() => open.begin(begin(0))).toThrow(refused);
    expect(() => open.begin(begin(1))).toThrow(refused);

    const over = ofPreCopy(1);
    over.begin(begin(1, "stop-copy"));
    over.end(end(1));
    expect(() => over.begin(begin(2, "stop-copy"))).toThrow(refused);
  });

  it("do not end before they began, twice, as another round, or with other pages", () => {
    expect(() => ofPreCopy(0).end(end(0))).toThrow(refused);
    expect(() => ofPreCopy(1).end(end(0))).toThrow(refused);
    for (const wrong of [end(0), end(2), end(1, 2), end(1, 4)]) {
      const rounds = ofPreCopy(1);
      rounds.begin(begin(1));
      expect(() => rounds.end(wrong)).toThrow(refused);
    }
  });

  it.each([-1, 1])("are not prepared with another last round, %i off", (off) => {
    const rounds = ofPreCopy(1);
    rounds.begin(begin(1, "stop-copy"));
    rounds.end(end(1));
    expect(() => rounds.finish(1 + off)).toThrow(refused);
  });

  it("are not prepared without a round, in one, or after one of pre-copy", () => {
    expect(() => ofPreCopy(0).finish(0)).toThrow(refused);
    expect(() => ofPreCopy(2).finish(1)).toThrow(refused);
    const open = ofPreCopy(1);
    open.begin(begin(1, "stop-copy"));
    expect(() => open.finish(1)).toThrow(refused);
    // Also where the round before it is the one that is named.
    expect(() => open.finish(0)).toThrow("PREPARE arrived in round 1");
  });
});
