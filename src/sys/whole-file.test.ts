import { spawnSync } from "node:child_process";
import {
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { writeWholeFile } from "./whole-file.js";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "dirtmap-whole-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe("a whole file", () => {
  it("is made, or replaced, with the mode that was asked for", () => {
    const path = join(folder, "file");
    writeWholeFile(path, "first", { mode: 0o600 });
    expect(statSync(path).mode & 0o777).toBe(0o600);
    writeWholeFile(path, new Uint8Array([50]));
    expect(readFileSync(path, "utf8")).toBe("2");
    expect(readdirSync(folder)).toEqual(["file"]);
  });

  it("that must not be there yet is not replaced", () => {
    const path = join(folder, "file");
    writeWholeFile(path, "first", { exclusive: true });
    expect(() => writeWholeFile(path, "second", { exclusive: true })).toThrow(/EEXIST/);
    expect(readFileSync(path, "utf8")).toBe("first");
    expect(readdirSync(folder)).toEqual(["file"]);
  });

  it("replaces what a symbolic link leads to, not the link", () => {
    writeFileSync(join(folder, "file"), "old");
    symlinkSync("file", join(folder, "link"));
    writeWholeFile(join(folder, "link"), "new");
    expect(readlinkSync(join(folder, "link"))).toBe("file");
    expect(readFileSync(join(folder, "file"), "utf8")).toBe("new");
  });

  it("does not take the place of a device", () => {
    writeWholeFile("/dev/null", "anything");
    expect(lstatSync("/dev/null").isCharacterDevice()).toBe(true);
  });

  it("removes what a writer of the same file left that was killed, and not what one that lives is writing", () => {
    const ended = spawnSync(process.execPath, ["-e", "0"]).pid;
    writeFileSync(join(folder, `.file.${ended}.tmp`), "half");
    writeFileSync(join(folder, `.file.${process.ppid}.tmp`), "in the making");
    writeWholeFile(join(folder, "file"), "whole");
    expect(readdirSync(folder).sort()).toEqual([`.file.${process.ppid}.tmp`, "file"]);
  });
});

describe("where only a part can be written", () => {
  /** Runs in a process whose files may have at most 4 KiB (in units of 1024 bytes): what is beyond fails with EFBIG. */
  const limited = (program: string) => {
    const module = new URL("./whole-file.js", import.meta.url).href;
    const script = `import { writeWholeFile } from ${JSON.stringify(module)}; ${program}`;
    const node = [process.execPath, "--input-type=module", "-e", script];
    return spawnSync("bash", ["-c", 'ulimit -f 4; exec "$@"', "bash", ...node], { cwd: folder, encoding: "utf8" });
  };

  it("nothing is written: no file, no temporary file", () => {
    const { stderr, status } = limited(`writeWholeFile("file", Buffer.alloc(16384))`);
    expect(stderr).toMatch(/EFBIG/);
    expect(status).toBe(1);
    expect(readdirSync(folder)).toEqual([]);
  });

  it("what was there stays", () => {
    writeFileSync(join(folder, "file"), "old");
    expect(limited(`writeWholeFile("file", Buffer.alloc(16384))`).stderr).toMatch(/EFBIG/);
    expect(readFileSync(join(folder, "file"), "utf8")).toBe("old");
    expect(readdirSync(folder)).toEqual(["file"]);
  });

  it("what fits is written", () => {
    expect(limited(`writeWholeFile("file", Buffer.alloc(4096))`).status).toBe(0);
    expect(statSync(join(folder, "file")).size).toBe(4096);
  });
});
