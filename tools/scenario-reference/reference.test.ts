import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { SCENARIOS_DOC, withReference } from "./document.js";

it("docs/scenarios.md has every field as the schema has it; else run `npm run docs:scenarios`", () => {
  const text = readFileSync(SCENARIOS_DOC, "utf8");
  expect(text).toBe(withReference(text));
});
