import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";

/*
 * The scripts that bring things onto a machine, with a Debian of a test's making: what they would install, and from where.
 */

const PROJECT = fileURLToPath(new URL("../../..", import.meta.url));
const SCRIPTS = join(PROJECT, "scripts");

const folder = mkdtempSync(join(tmpdir(), "dirtmap-scripts-"));
// A clone of its own: a kernel may lie beside this one.
const clone = join(folder, "clone");
for (const part of ["scripts/kernel", "test/kernel/config.fragment"]) {
  cpSync(join(PROJECT, part), join(clone, part), { recursive: true });
}
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const log = join(folder, "log");
const bin = join(folder, "bin");
mkdirSync(bin);
for (const [name, script] of Object.entries({
  // Nothing is installed.
  "dpkg-query": "exit 1",
  // As root or not.
  sudo: 'shift; exec "$@"',
  // Fetches nothing; before an update it knows no labels, as a fresh machine.
  "apt-get": `echo "apt-get $*" >>${log}
case "$*" in
  *indextargets*) [ ! -e ${folder}/updated ] || printf 'http://mirror.test/debian/\\nhttp://other.test/debian/\\n' ;;
  *" update") : >${folder}/updated ;;
  *download*) exit 1 ;;
esac`,
})) {
  writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`);
  chmodSync(join(bin, name), 0o755);
}
for (const name of [
  "bash",
  "sh",
  "env",
  "dirname",
  "realpath",
  "mktemp",
  "mkdir",
  "rm",
  "grep",
  "head",
  "cat",
  "find",
]) {
  const found = spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" }).stdout.trim();
  symlinkSync(found, join(bin, name));
}

function run(script: string, env: NodeJS.ProcessEnv): { output: string; log: string } {
  rmSync(log, { force: true });
  rmSync(join(folder, "updated"), { force: true });
  const { stdout, stderr } = spawnSync("bash", ["-c", script], {
    cwd: join(clone, "scripts/kernel"),
    env: { PATH: bin, HOME: folder, ...env },
    encoding: "utf8",
  });
  return { output: `${stdout}${stderr}`, log: readFileSync(log, "utf8") };
}

describe("prepare.sh", () => {
  const needed = ["gcc", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils"];
  const elsewhere = { DIRTMAP_QEMU: "/bin/true" };

  it("installs what the kernel is built with, where it has to be built", () => {
    const { log: asked, output } = run("./prepare.sh", elsewhere);
    const install = asked.split("\n").find((line) => line.includes(" install ")) ?? "";
    expect(install.split(" ")).toEqual(expect.arrayContaining(needed));
    expect(output, "it went on to the build").toMatch(/^build-kernel\.sh: /m);
  });

  it("does not, where there is a kernel", () => {
    const install = run("./prepare.sh", { ...elsewhere, DIRTMAP_TEST_KERNEL: "/some/bzImage" }).log;
    expect(install).toContain(" install ");
    expect(install).not.toContain("flex");
  });
});

describe("the mirror", () => {
  const mirror = (env: NodeJS.ProcessEnv) =>
    run("source ./debian-mirror.sh; debian_mirror; true >>$LOG", { LOG: log, ...env });

  it("is apt's own, also where apt has fetched no lists yet", () => {
    const { output, log: asked } = mirror({});
    expect(output).toBe("http://mirror.test/debian/\n");
    expect(asked, "in a folder of its own: that needs no root").toMatch(/-o Dir::State::lists=\S+ update/);
  });

  it("can be overruled", () => {
    expect(mirror({ DIRTMAP_DEBIAN_MIRROR: "http://mine.test/" }).output).toBe("http://mine.test/\n");
  });

  it("is named by no script", () => {
    for (const path of readdirSync(SCRIPTS, { recursive: true })
      .map(String)
      .filter((name) => name.endsWith(".sh"))) {
      expect(readFileSync(join(SCRIPTS, path), "utf8"), path).not.toMatch(/https?:\/\/\S*(debian|ubuntu)\S*/);
    }
  });
});
