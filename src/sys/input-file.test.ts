import { execFileSync, spawn } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, readSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openRegularFile, readInput, readStart, readTextInput } from "./input-file.js";

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

  it("may be read from its start alone", () => {
    const path = pipe("start");
    spawn("sh", ["-c", `printf abcdef > ${path}`], { stdio: "ignore" });
    expect(readStart(path, 4).toString()).toBe("abcd");
    writeFileSync(join(folder, "short"), "ab");
    expect(readStart(join(folder, "short"), 4).toString()).toBe("ab");
  });

  it("does not keep anybody waiting where it is a pipe that nobody writes to", () => {
    expect(() => readInput(pipe("silent"), 100)).toThrow("nothing came from it for 5 seconds");
  });

  it("is not opened where it is a device, a folder, or for some uses a pipe", () => {
    expect(() => readInput("/dev/zero", 100)).toThrow("it is a device; a regular file or a pipe is expected");
    mkdirSync(join(folder, "folder"));
    expect(() => readInput(join(folder, "folder"), 100)).toThrow("it is a folder");
    expect(() => openRegularFile(pipe("twice"))).toThrow("it is a pipe; a regular file is expected");
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

let root: string;
let granted: string;
const path = (name: string) => join(granted, name);

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-files-"));
  granted = join(root, "granted");
  mkdirSync(join(granted, "deeper"), { recursive: true });
  writeFileSync(path("disk"), "inside");
  writeFileSync(path("deeper/disk"), "inside");
  writeFileSync(join(root, "secret"), "outside");
  mkdirSync(join(root, "granted-too"));
  writeFileSync(join(root, "granted-too/disk"), "outside");
  symlinkSync("deeper/disk", path("link-inside"));
  symlinkSync("../secret", path("link-out"));
  symlinkSync("..", path("folder-out"));
  symlinkSync("../nothing", path("link-to-nothing"));
  execFileSync("mkfifo", [path("fifo")]);
  symlinkSync("/dev/null", path("device"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

function contents(name: string, within?: string): string {
  const fd = openRegularFile(name, { write: true, within });
  try {
    const into = Buffer.alloc(16);
    return into.toString("latin1", 0, readSync(fd, into, 0, 16, 0));
  } finally {
    closeSync(fd);
  }
}

describe("a file", () => {
  it("is opened where it lies, by a link too", () => {
    for (const name of ["disk", "deeper/disk", "link-inside"]) {
      expect(contents(path(name))).toBe("inside");
      expect(contents(path(name), granted)).toBe("inside");
      expect(contents(path(name), `${granted}/`)).toBe("inside");
    }
    expect(contents(path("link-out"))).toBe("outside");
  });

  it("is none if it is a FIFO, a device or a folder: opening those may wait, or have effects", () => {
    for (const name of [path("fifo"), path("device"), "/dev/zero", granted]) {
      expect(() => openRegularFile(name)).toThrow(expect.objectContaining({ code: "NOT_A_FILE" }));
    }
  });
});

describe("a file that must lie in a folder", () => {
  it("is refused elsewhere, and the refusal does not tell what exists there", () => {
    const names = [
      "link-out",
      "folder-out/secret",
      "link-to-nothing",
      "folder-out/nothing",
      "../secret",
      "../nothing",
      "../granted-too/disk",
      "fifo",
      "device",
      "nothing",
      "",
    ];
    const refusals = names.map((name) => {
      try {
        closeSync(openRegularFile(path(name), { within: granted }));
      } catch (error) {
        const { code, message, remedy } = error as { code: string; message: string; remedy: string };
        return { code, message: message.replace(path(name), "NAME"), remedy };
      }
      return `${name} was opened`;
    });
    expect(new Set(refusals.map((refusal) => JSON.stringify(refusal)))).toHaveLength(1);
    expect(refusals[0]).toMatchObject({ code: "NOT_GRANTED", message: "'NAME' is no file that may be opened here" });
  });

  it("may be there by a link of the folder itself", () => {
    const other = join(root, "by-link");
    symlinkSync(granted, other);
    expect(contents(join(other, "disk"), other)).toBe("inside");
  });
});
