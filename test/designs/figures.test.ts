import { existsSync, readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { findCrossings } from "../../src/evidence/designs/crossings.js";
import { designFigures } from "../../src/evidence/designs/figures.js";
import { readDesignsResult } from "../../src/evidence/designs/result.js";

/*
 * docs/designs.md: its figures are those of the result beside them, and it shows none that isn't there.
 */

const DOCS = fileURLToPath(new URL("../../../docs/", import.meta.url));
const result = readDesignsResult(`${DOCS}figures/designs.json`);
const migrations = readDesignsResult(`${DOCS}figures/designs-migrations.json`);
const figures = [...designFigures(result), ...designFigures(migrations)];

describe("the paper", () => {
  test("shows figures that its command draws of its result, and has no others beside it", () => {
    const text = readFileSync(`${DOCS}designs.md`, "utf8");
    const shown = [...text.matchAll(/\]\(figures\/([\w-]+)\.svg\)/g)].map(([, name]) => name);
    const there = readdirSync(`${DOCS}figures`).filter((name) => name.endsWith(".svg"));
    expect(shown.length).toBeGreaterThan(3);
    expect(there.sort()).toEqual(shown.map((name) => `${name}.svg`).sort());
    for (const name of shown) {
      const drawn = figures.find((figure) => figure.name === name);
      expect(readFileSync(`${DOCS}figures/${name}.svg`, "utf8")).toBe(`${drawn?.svg}\n`);
    }
  });

  test("has crossings that follow from its rows", () => {
    const rounded = (rows: typeof result.crossings) =>
      rows.map(({ workload, measure, rival, crossings }) => {
        return {
          workload,
          measure,
          rival,
          crossings: crossings.map(({ between, at }) => ({ between, at: at.toPrecision(2) })),
        };
      });
    expect(rounded(findCrossings(result.reads))).toEqual(rounded(result.crossings));
  });

  test("links to nothing that is not there", () => {
    const text = readFileSync(`${DOCS}designs.md`, "utf8");
    for (const [, path] of text.matchAll(/\]\((?!https?:|#)([^)]+)\)/g)) {
      expect(existsSync(new URL(path, `file://${DOCS}`)), path).toBe(true);
    }
  });
});
