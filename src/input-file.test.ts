import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openInput, readInput, readTextInput } from "./input-file.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-input-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function pipe(name: string): string {
  const path = join(folder, name);
  execFileSync("mkfifo", [path]);
  return path;
}

describe("a file that a user names", () => {
  it("is read whole, whatever size the system says that it has", () => {
    const path = join(folder, "file");
    writeFileSync(path, "x".repeat(200_000));
    expect(readInput(path, 200_000)).toHaveLength(200_000);
    expect(readTextInput("/proc/self/status", 1 << 16), "files of /proc have a size of 0").toContain("Name:");
  });

  it("is not read where it is longer than it may be", () => {
    const path = join(folder, "long");
    writeFileSync(path, "x".repeat(11));
    expect(() => readInput(path, 10)).toThrow("it has 11 bytes, and at most 10 are read");
    expect(() => readInput("/proc/self/status", 10)).toThrow("it has more than 10 bytes");
  });

  it("may be a pipe, which is read to its end, and no further than allowed", () => {
    const path = pipe("pipe");
    spawn("sh", ["-c", `(sleep 0.2; printf abc; sleep 0.2; printf def) > ${path}`], { stdio: "ignore" });
    expect(readTextInput(path, 100)).toBe("abcdef");
    spawn("sh", ["-c", `cat /dev/zero > ${path}`], { stdio: "ignore" });
    expect(() => readInput(path, 1 << 20)).toThrow(`it has more than ${1 << 20} bytes`);
  });

  it("does not keep anybody waiting where it is a pipe that nobody writes to", () => {
    expect(() => readInput(pipe("silent"), 100)).toThrow("nothing came from it for 5 seconds");
  });

  it("is not opened where it is a device, a folder, or for some uses a pipe", () => {
    expect(() => readInput("/dev/zero", 100)).toThrow("it is a device; a regular file or a pipe is expected");
    mkdirSync(join(folder, "folder"));
    expect(() => readInput(join(folder, "folder"), 100)).toThrow("it is a folder");
    expect(() => openInput(pipe("twice"), { pipes: false })).toThrow("it is a pipe; a regular file is expected");
    expect(() => readInput(join(folder, "none"), 100)).toThrow("ENOENT");
  });

  it("is no text where it has bytes that are no UTF-8, or control characters", () => {
    const path = join(folder, "binary");
    writeFileSync(path, Uint8Array.of(0x61, 0xff));
    expect(() => readTextInput(path, 100)).toThrow("it is no text (UTF-8)");
    writeFileSync(path, "a\x1b[2J");
    expect(() => readTextInput(path, 100)).toThrow("it is no text: it has control characters");
    writeFileSync(path, "a: 1\r\n\tb\n");
    expect(readTextInput(path, 100)).toBe("a: 1\r\n\tb\n");
  });
});
