import { mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { checkWritable, makeFolder, writeOutput } from "./output-file.js";

const root = mkdtempSync(join(tmpdir(), "dirtmap-output-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("makeFolder", () => {
  it("makes what is missing, each with the mode, and leaves what is there alone", () => {
    makeFolder(join(root, "a", "b", "c"), { mode: 0o700 });
    for (const path of ["a", "a/b", "a/b/c"]) expect(statSync(join(root, path)).mode & 0o777).toBe(0o700);
    makeFolder(join(root, "a", "b"));
    expect(statSync(join(root, "a", "b")).mode & 0o777).toBe(0o700);
    symlinkSync(join(root, "a"), join(root, "link"));
    makeFolder(join(root, "link", "d"));
    expect(statSync(join(root, "a", "d")).isDirectory()).toBe(true);
  });

  it.skipIf(process.platform !== "linux")("ends where the system says ENOENT of a folder whose parent is there", () => {
    expect(() => makeFolder("/proc/x/y")).toThrow("ENOENT");
  });

  it("makes nothing under a file", () => {
    writeFileSync(join(root, "file"), "");
    expect(() => makeFolder(join(root, "file", "x"))).toThrow("ENOTDIR");
    expect(() => makeFolder(join(root, "file"))).toThrow("EEXIST");
  });
});

describe("a file that is written", () => {
  it("gets the folders that it lacks", () => {
    const path = join(root, "new", "report.md");
    expect(writeOutput(path, "text")).toBe(path);
    expect(readFileSync(path, "utf8")).toBe("text");
  });

  it("says in one line why it can't be, and what would work", () => {
    const refused = (path: string) => {
      try {
        writeOutput(path, "x");
      } catch (error) {
        return error;
      }
      throw new Error("it was written");
    };
    const elsewhere = "give a place that may be written to, and has room";
    expect(refused("/proc/x/y")).toMatchObject({ code: "CANNOT_WRITE", remedy: elsewhere });
    expect(refused(root)).toMatchObject({ message: expect.stringMatching(/^can't write to .*EISDIR/) });
    if (process.platform !== "linux") return;
    expect(refused("/dev/full")).toMatchObject({ message: expect.stringContaining("ENOSPC") });
  });

  it("is refused beforehand where its folder can't be made", () => {
    expect(() => checkWritable("/proc/x")).toThrow(expect.objectContaining({ code: "CANNOT_WRITE" }));
  });
});
