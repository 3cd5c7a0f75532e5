import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { thisProcess } from "./process-identity.js";
import { removeAbandonedFolders, temporaryFolder } from "./temporary-folder.js";

const before = process.env.TMPDIR;
let root = "";
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-test-"));
  process.env.TMPDIR = root;
});
afterEach(() => {
  if (before === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = before;
  rmSync(root, { recursive: true, force: true });
});

/** A folder as another process left it. */
function left(name: string, owner: object | string): string {
  const path = join(root, name);
  mkdirSync(path);
  writeFileSync(join(path, "disk.img"), "data");
  writeFileSync(join(path, ".owner"), typeof owner === "string" ? owner : JSON.stringify(owner));
  return path;
}

describe("a temporary folder", () => {
  it("is removed with what is in it", () => {
    const folder = temporaryFolder("disks");
    writeFileSync(join(folder.path, "disk.img"), "data");
    folder[Symbol.dispose]();
    expect(readdirSync(root)).toEqual([]);
  });

  it("of a process that has ended is removed by another, and none besides", () => {
    const mine = temporaryFolder("devices");
    const ended = left("dirtmap-disks-abcdef", { ...thisProcess(), started: "1" });
    left("dirtmap-disks-uvwxyz", { ...thisProcess(), boot: "another", host: "elsewhere" });
    left("dirtmap-notes-abcdef", { ...thisProcess(), started: "1" });
    symlinkSync(ended, join(root, "dirtmap-disk-linked"));
    expect(removeAbandonedFolders()).toEqual([ended]);
    expect(existsSync(mine.path)).toBe(true);
    expect(readdirSync(root)).toHaveLength(4);
  });

  it.each(["", "{", "null", "7"])("whose owner's file reads %j is left alone, but not for ever", (text) => {
    const path = left("dirtmap-disks-abcdef", text);
    expect(removeAbandonedFolders()).toEqual([]);
    const old = new Date(Date.now() - 2 * 3_600_000);
    utimesSync(path, old, old);
    expect(removeAbandonedFolders()).toEqual([path]);
  });
});
