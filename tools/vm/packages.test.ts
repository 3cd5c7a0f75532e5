import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { packagesNeeded } from "./packages.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-packages-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** Installs a package in the folder, with what its manifest says. */
function install(folder: string, manifest: object = {}): void {
  mkdirSync(join(root, folder), { recursive: true });
  writeFileSync(join(root, folder, "package.json"), JSON.stringify(manifest));
}

test("what a package needs comes along, and what that needs; what nobody needs stays behind", () => {
  install("node_modules/runner", { dependencies: { "@scope/part": "1" } });
  install("node_modules/@scope/part", { dependencies: { runner: "1", leaf: "1" } });
  install("node_modules/leaf");
  install("node_modules/compiler");
  expect(packagesNeeded(root, ["runner"])).toEqual([
    "node_modules/@scope/part",
    "node_modules/leaf",
    "node_modules/runner",
  ]);
});

test("a package finds its own copy of another before the project's", () => {
  install("node_modules/runner", { dependencies: { leaf: "2" } });
  install("node_modules/runner/node_modules/leaf");
  install("node_modules/leaf");
  expect(packagesNeeded(root, ["runner"])).toEqual(["node_modules/runner", "node_modules/runner/node_modules/leaf"]);
  expect(packagesNeeded(root, ["runner", "leaf"])).toContain("node_modules/leaf");
});

test("of optional packages and peers those come along that are installed", () => {
  install("node_modules/runner", {
    dependencies: { elsewhere: "1" },
    optionalDependencies: { "for-linux": "1", elsewhere: "1" },
    peerDependencies: { peer: "1", "no-peer": "1" },
  });
  install("node_modules/for-linux");
  install("node_modules/peer");
  expect(packagesNeeded(root, ["runner"])).toEqual([
    "node_modules/for-linux",
    "node_modules/peer",
    "node_modules/runner",
  ]);
});

test("a package that is needed and not installed is an error that names it", () => {
  install("node_modules/runner", { dependencies: { leaf: "1" } });
  expect(() => packagesNeeded(root, ["runner"])).toThrow(/leaf.*not installed: run npm ci/);
});
