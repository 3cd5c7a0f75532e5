import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { importsOf, quickTests } from "./quick-tests.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-quick-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function write(files: Readonly<Record<string, string>>): void {
  for (const [name, text] of Object.entries(files)) {
    const path = join(root, "dist", name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
}

test("every way to import is seen, on one line or several, and nothing else", () => {
  const text = `import { a } from "./a.js";
import {
  b,
} from "node:net";
import "./c.js";
export { d } from "./d.js";
export * from "./e.js";
const f = await import("./f.js");
export const text = "./none.js";
// as in: import { x } from "./none.js"
`;
  expect(importsOf(text)).toEqual(["./a.js", "node:net", "./c.js", "./d.js", "./e.js", "./f.js"]);
});

test("a test is quick unless something that it imports starts processes or threads, or opens sockets", () => {
  write({
    "src/plain.test.js": 'import "./plain.js";\nimport { test } from "vitest";\n',
    "src/plain.js": 'import { readFileSync } from "node:fs";\n',
    "src/direct.test.js": 'import { createServer } from "node:net";\n',
    "src/deep/indirect.test.js": 'import { a } from "../middle.js";\n',
    "src/middle.js": 'export const a = () => import("./thread.js");\n',
    "src/thread.js": 'import { Worker } from "node:worker_threads";\n',
    "tools/beside.test.js": "",
  });
  expect(quickTests(root)).toEqual(["dist/src/plain.test.js", "dist/tools/beside.test.js"]);
});

test("files that import each other are no trap", () => {
  write({ "src/a.test.js": 'import "./b.js";\n', "src/b.js": 'import "./c.js";\n', "src/c.js": 'import "./b.js";\n' });
  expect(quickTests(root)).toEqual(["dist/src/a.test.js"]);
});

test("suites under test/ are none of them", () => {
  write({ "test/plain.test.js": "" });
  expect(quickTests(root)).toEqual([]);
});
