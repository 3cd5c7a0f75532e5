import { execFileSync } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, readSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openRegularFile } from "./regular-file.js";

let root: string;
let folder: string;
const path = (name: string) => join(folder, name);

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-files-"));
  folder = join(root, "granted");
  mkdirSync(join(folder, "deeper"), { recursive: true });
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
      expect(contents(path(name), folder)).toBe("inside");
      expect(contents(path(name), `${folder}/`)).toBe("inside");
    }
    expect(contents(path("link-out"))).toBe("outside");
  });

  it("is none if it is a FIFO, a device or a folder: opening those may wait, or have effects", () => {
    for (const name of [path("fifo"), path("device"), "/dev/zero", folder]) {
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
        closeSync(openRegularFile(path(name), { within: folder }));
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
    symlinkSync(folder, other);
    expect(contents(join(other, "disk"), other)).toBe("inside");
  });
});
