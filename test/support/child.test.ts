import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { Child } from "./child.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-child-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A program of these lines. */
function program(name: string, text: string): string {
  const file = join(folder, `${name}.mjs`);
  writeFileSync(file, text);
  return file;
}

test("what a process says is found, whoever waits for it, and also after its end", async () => {
  const text = `process.stdin.once("data", () => { console.log('{"a":1}'); console.error("b"); process.exit(3); });`;
  await using child = new Child(program("says", text));
  const waiting = Promise.all([child.said("a"), child.said("a", 1), child.complained(/b/)]);
  child.process.stdin?.write("go\n");
  expect((await waiting).slice(0, 2)).toEqual([{ a: 1 }, { a: 1 }]);
  expect(await child.ended).toBe(3);
  expect(await child.said("a")).toEqual({ a: 1 });
});

test("what a process has not said at its end it will never say: that is an error at once", async () => {
  await using child = new Child(program("fails", `console.error("no such file"); process.exit(1);`));
  await expect(child.said("address")).rejects.toThrow(/it never said address .*: no such file/);
  await expect(child.complained(/listening/)).rejects.toThrow("it never said /listening/");
});
