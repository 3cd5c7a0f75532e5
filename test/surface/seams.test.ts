import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

/*
 * What only one file may do, since it takes care that the others would forget.
 */

const SRC = fileURLToPath(new URL("../../../src", import.meta.url));

const sources = readdirSync(SRC, { recursive: true })
  .map(String)
  .filter((path) => path.endsWith(".ts") && !/\.test\.(helper\.)?ts$/.test(path))
  .map((path) => ({ path, code: withoutComments(readFileSync(join(SRC, path), "utf8")) }));

function withoutComments(code: string): string {
  return code.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
}

function filesWith(pattern: RegExp): string[] {
  return sources.flatMap(({ path, code }) => (pattern.test(code) ? [path] : []));
}

describe("only one file", () => {
  it("writes to standard output and standard error: there foreign text is made safe", () => {
    expect(filesWith(/process\.(stdout|stderr)|\bconsole\.|writeSync\([12],/)).toEqual(["cli/output.ts"]);
  });

  it("makes folders where a user says: Node's own way of making several can spin for ever", () => {
    expect(filesWith(/\bmkdir(Sync)?\(/)).toEqual(["sys/output-file.ts"]);
  });

  it("knows which characters are unsafe", () => {
    expect(filesWith(/\\p\{C[cfs]\}|\\u202e|\\u001b\\?\[/i)).toEqual(["safe-text.ts"]);
  });
});

describe("the dashboard's page", () => {
  it("sets text as text: nothing in it is taken for HTML", () => {
    const web = fileURLToPath(new URL("../../../web", import.meta.url));
    for (const file of readdirSync(web).filter((name) => name.endsWith(".ts"))) {
      const code = readFileSync(join(web, file), "utf8");
      expect(code, file).not.toMatch(
        /innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment/,
      );
    }
  });
});
