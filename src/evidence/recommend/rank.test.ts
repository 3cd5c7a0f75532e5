import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { classesOf, compareClasses, firstDifference } from "./rank.js";

const ERROR = 5;
const figure = fc.integer({ min: 0, max: 60 });

/** Candidates, each with a figure per criterion, in a class per criterion. */
function classify(candidates: readonly (readonly number[])[]): number[][] {
  const byCriterion = candidates[0].map((_, criterion) =>
    classesOf(
      candidates.map((figures) => figures[criterion]),
      () => ERROR,
    ),
  );
  return candidates.map((_, index) => byCriterion.map((classes) => classes[index]));
}

const CANDIDATES = fc.array(fc.array(figure, { minLength: 3, maxLength: 3 }), { minLength: 2, maxLength: 7 });

describe("classes", () => {
  it.each<[string, (number | null)[], number[]]>([
    ["figures apart by more than the error", [20, 1, 8], [2, 0, 1]],
    ["figures apart by the error", [1, 6], [0, 0]],
    ["equal figures", [3, 3], [0, 0]],
    ["a chain of figures, each near the next", [1, 5, 9, 13], [0, 0, 0, 0]],
    ["a figure that is not known", [20, null, 1], [1, 0, 0]],
    ["nothing", [], []],
  ])("of %s", (_, figures, classes) => {
    expect(classesOf(figures, () => ERROR)).toEqual(classes);
  });

  it("are in the order of the figures, and two of them lie further apart than the error", () => {
    fc.assert(
      fc.property(fc.array(figure), (figures) => {
        const classes = classesOf(figures, () => ERROR);
        for (const [i, a] of figures.entries()) {
          for (const [j, b] of figures.entries()) {
            if (classes[i] < classes[j]) expect(b - a).toBeGreaterThan(ERROR);
            if (a <= b) expect(classes[i]).toBeLessThanOrEqual(classes[j]);
            if (Math.abs(a - b) <= ERROR) expect(classes[i]).toBe(classes[j]);
          }
        }
      }),
    );
  });
});

describe("candidates by several criteria", () => {
  it("are in an order: what is better than a better one is better, and nothing is better than itself", () => {
    fc.assert(
      fc.property(CANDIDATES, (candidates) => {
        const classes = classify(candidates);
        for (const a of classes) {
          expect(compareClasses(a, a)).toBe(0);
          for (const b of classes) {
            expect(Math.sign(compareClasses(a, b)) + Math.sign(compareClasses(b, a))).toBe(0);
            for (const c of classes) {
              if (compareClasses(a, b) <= 0 && compareClasses(b, c) <= 0) {
                expect(compareClasses(a, c)).toBeLessThanOrEqual(0);
              }
            }
          }
        }
      }),
    );
  });

  it("lose to the winner by a criterion that tells the two apart, and by no earlier one", () => {
    fc.assert(
      fc.property(CANDIDATES, (candidates) => {
        const classes = classify(candidates);
        const order = candidates.map((_, index) => index).sort((a, b) => compareClasses(classes[a], classes[b]));
        const [best, ...others] = order;
        for (const other of others) {
          const at = firstDifference(classes[best], classes[other]);
          if (at === -1) continue;
          expect(candidates[other][at] - candidates[best][at]).toBeGreaterThan(ERROR);
          expect(classes[other].slice(0, at)).toEqual(classes[best].slice(0, at));
        }
      }),
    );
  });

  it("keep a winner that gets better, and a loser that gets worse still loses to it, by any criterion", () => {
    fc.assert(
      fc.property(
        CANDIDATES,
        fc.nat(),
        fc.nat({ max: 2 }),
        fc.integer({ min: 0, max: 30 }),
        (candidates, who, by, much) => {
          const wins = (index: number, classes: readonly number[][]) =>
            classes.every((other) => compareClasses(classes[index], other) <= 0);
          const before = classify(candidates);
          const winner = candidates.findIndex((_, index) => wins(index, before));
          const changed = who % candidates.length;
          const change = changed === winner ? -much : much;
          const after = classify(
            candidates.map((figures, index) => (index === changed ? figures.with(by, figures[by] + change) : figures)),
          );
          if (changed === winner) expect(wins(winner, after)).toBe(true);
          else expect(compareClasses(after[winner], after[changed])).toBeLessThanOrEqual(0);
        },
      ),
    );
  });
});
