import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ROOT } from "./blocks.js";

/*
 * The places in sources that documents about Linux name, as `file:name`. Linux's own sources are not here: of these the form is
 * checked.
 */

const PLACE = /^(?<file>[\w./-]+\.(?:c|h|ts)):(?<name>\w+)$/;

/** All that is written as code and has a colon after a source file's name. */
function placesIn(document: string): string[] {
  const text = readFileSync(join(ROOT, document), "utf8");
  return [...text.matchAll(/`([^`\s]+\.(?:c|h|ts):[^`]*)`/g)].map(([, place]) => place);
}

describe.each(["docs/kernel-bugs.md", "docs/fidelity.md"])("a place in a source that %s names", (document) => {
  const places = placesIn(document);

  it("is a file and a name in it", () => {
    expect(places.length).toBeGreaterThan(20);
    expect(places.filter((place) => !PLACE.test(place))).toEqual([]);
  });

  it("is there, if it is one of this project's", () => {
    const ours = places.flatMap((place) => {
      const { file, name } = PLACE.exec(place)?.groups ?? {};
      return file?.startsWith("src/") ? [{ place, file, name }] : [];
    });
    expect(ours.length).toBeGreaterThan(0);
    const missing = ours.filter(({ file, name }) => {
      const path = join(ROOT, file);
      return !existsSync(path) || !new RegExp(`\\b${name}\\b`).test(readFileSync(path, "utf8"));
    });
    expect(missing.map(({ place }) => place)).toEqual([]);
  });
});
