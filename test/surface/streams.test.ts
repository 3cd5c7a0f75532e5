import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { dirtmap, PROGRAM, type Ran } from "../support/program.js";

/*
 * What a user meets where something around Dirtmap is not as it should be: one line, never a stack, never a hang.
 */

const folder = mkdtempSync(join(tmpdir(), "dirtmap-streams-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const tiny = join(folder, "tiny.yaml");
writeFileSync(
  tiny,
  `machine:
  memory: 16M
  vcpus: { count: 1, rate: 0.5, footprint: 64K }
  iommus: [{ id: iommu0, format: amd-v1 }]
  devices: [{ id: nic0, model: nic, iommu: iommu0, load: { rate: 0.5, footprint: 128K } }]
`,
);

/** Runs a line of shell in which \`dirtmap\` is the program; bounded. */
function shell(line: string): Promise<Ran> {
  const script = `set -o pipefail; dirtmap() { "${process.execPath}" "${PROGRAM}" "$@"; }; ${line}`;
  return new Promise((resolve) => {
    execFile("bash", ["-c", script], { timeout: 60_000, killSignal: "SIGKILL" }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : typeof error.code === "number" ? error.code : null, stdout, stderr });
    });
  });
}

function expectOneLine(stderr: string, says: RegExp): void {
  expect(stderr.trimEnd().split("\n"), stderr).toHaveLength(1);
  expect(stderr).toMatch(says);
}

describe.skipIf(process.platform !== "linux")("standard output", () => {
  it.concurrent.each([["scenarios"], ["scenarios --json"], ["--help"], ["plan --help"], ["--version"]])(
    "that is full makes `%s` fail, in one line",
    async (command) => {
      const { code, stderr } = await shell(`dirtmap ${command} >/dev/full`);
      expectOneLine(stderr, /^dirtmap: can't write to standard output: .*ENOSPC/);
      expect(code).toBe(1);
    },
  );

  it("that nobody reads any more is nothing to tell of, and ends what would go on for ever", async () => {
    const { stderr } = await shell("dirtmap scenarios | head -1");
    expect(stderr).toBe("");
    const watched = await shell(`dirtmap top --scenario ${tiny} --interval 5ms | head -1`);
    expect(watched).toMatchObject({ stderr: "", stdout: expect.stringMatching(/ · nic0 /) });
  });

  it("that is closed, or a standard error that takes nothing, does no harm", async () => {
    expect(await shell("dirtmap scenarios >&-")).toMatchObject({ code: 0, stderr: "" });
    expect(await shell("dirtmap plan --tracker x=iommu 2>/dev/full")).toMatchObject({ code: 2 });
  });
});

describe("a program that is not whole says in one line what to run:", () => {
  it("a clone that was never built", async () => {
    const clone = join(folder, "clone");
    mkdirSync(join(clone, "bin"), { recursive: true });
    cpSync(PROGRAM, join(clone, "bin", "dirtmap.js"));
    writeFileSync(join(clone, "package.json"), '{ "type": "module" }');
    const line = `"${process.execPath}" ${clone}/bin/dirtmap.js migrate`;
    const fresh = await shell(line);
    expect(fresh).toMatchObject({ code: 1, stderr: "dirtmap: it is not built; run: npm ci && npm run build\n" });
    mkdirSync(join(clone, "node_modules"));
    expect((await shell(line)).stderr).toBe("dirtmap: it is not built; run: npm run build\n");
    mkdirSync(join(clone, "dist/src/cli"), { recursive: true });
    writeFileSync(join(clone, "dist/src/cli/main.js"), 'import "dirtmap-lacks-this";');
    expectOneLine(
      (await shell(line)).stderr,
      /a part is missing: Cannot find package 'dirtmap-lacks-this'.*run: npm ci/,
    );
  });
});

describe.skipIf(process.platform !== "linux")(
  "what can't be written is told of in one line, before it costs anything:",
  () => {
    const designs = fileURLToPath(new URL("../../../docs/figures/designs.json", import.meta.url));
    symlinkSync("/dev/full", join(folder, "full.md"));

    it.concurrent.each([
      [
        "a trace where no folder can be made",
        ["record", "--scenario", tiny, "-o", "/proc/x/y", "--duration", "50ms"],
        /CANNOT_WRITE/,
      ],
      [
        "a trace where there is no room",
        ["record", "--scenario", tiny, "-o", "/dev/full", "--duration", "50ms"],
        /ENOSPC/,
      ],
      ["certificates", ["certs", "/proc/x/y"], /FOLDER_NOT_WRITABLE/],
      ["a journal", ["migrate", "--scenario", tiny, "--journal", "/proc/x/y", "--no-store", "--quiet"], /JOURNAL/],
      ["a store", ["recommend", "--store", "/proc/x/y"], /NO_STORE/],
      ["a benchmark", ["bench", "trackers", "--output", "/proc/x/y"], /CANNOT_WRITE/],
      ["figures", ["bench", "designs", "--from", designs, "--figures", "/proc/x/y"], /CANNOT_WRITE/],
    ])("%s", async (_, args, says) => {
      const { code, stdout, stderr } = await dirtmap([...args, "--json"]);
      expect(`${stdout}${stderr}`).toMatch(says);
      expectOneLine(stderr, /^dirtmap: .*; /);
      expect(code).not.toBe(0);
    });

    it("the folder of live feeds", async () => {
      const { code, stderr } = await dirtmap(["top"], { env: { XDG_RUNTIME_DIR: "/proc/x" } });
      expectOneLine(stderr, /the folder of live feeds can't be made: ENOENT.*; set XDG_RUNTIME_DIR/);
      expect(code).toBe(1);
    });

    it("a report, for which nothing is lost that was measured", async () => {
      const asked = ["bench", "designs", "--from", designs, "--no-store", "--report", join(folder, "full.md")];
      const { code, stderr } = await dirtmap([...asked, "--json"]);
      expectOneLine(stderr, /^no report: can't write to .*ENOSPC.*; give a place/);
      expect(code).toBe(0);
    });
  },
);

describe("a file that is something else is refused in one line, whatever it is given for:", () => {
  const random = join(folder, "random");
  writeFileSync(
    random,
    Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7919) % 251),
  );

  it.concurrent.each(
    [random, "/dev/zero", "/dev/random", folder].flatMap((file) =>
      [
        ["plan", "--scenario", file.includes("/") ? file : `./${file}`],
        ["predict", "--trace", file],
        ["replay", file],
        ["predict", "--run", file],
        ["plan", "--policy", `measured:${file}`],
        ["recommend", "--from", file],
        ["bench", "designs", "--from", file],
        ["serve", "--token-file", file],
        ["migrate", "--to", "tls://localhost:1", "--tls-cert", file, "--tls-key", file, "--tls-ca", file],
        ["recommend", "--store", file],
      ].map((args) => [args.slice(0, -1).join(" "), file, args] as const),
    ),
  )("%s %s", async (_, __, args) => {
    const { code, stderr } = await dirtmap(args);
    expectOneLine(stderr, /^dirtmap: /);
    expect(stderr.length).toBeLessThan(600);
    expect(code).toBe(2);
  });
});
