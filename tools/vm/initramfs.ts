import { type SpawnSyncOptions, spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { MissingError } from "./missing.js";
import { packagesNeeded } from "./packages.js";

/** Where the project lies in the guest. */
export const GUEST_PROJECT = "/app";

/** What of the project the guest gets, besides its packages; sources, since vitest shows where in them a test failed. */
const PROJECT_PARTS = ["package.json", "README.md", "bin", "dist", "scenarios", "src", "test", "bench"];

/** Packages for development that tests need as they run; the others only build or lint. */
const TEST_PACKAGES = ["vitest", "fast-check"];

/** Debian's busybox-static. The dynamic busybox would do, too: its libraries are looked up as everybody's. */
const BUSYBOX = ["/bin/busybox", "/usr/bin/busybox"];

const PACKAGE_OF: Readonly<Record<string, string>> = { find: "findutils" };
/** For the names of some ten thousand files. */
const OUTPUT_LIMIT = 64 * 1024 * 1024;

/** Puts a link to a file or folder of this machine at a place in the tree, which cpio follows. */
function place(tree: string, at: string, source: string): void {
  const link = join(tree, at);
  if (existsSync(link)) return;
  mkdirSync(dirname(link), { recursive: true });
  symlinkSync(source, link);
}

/** The shared libraries of these programs, as ldd resolves them; undefined for one that can't be loaded here. */
function librariesOf(file: string): readonly string[] | undefined {
  const { status, stdout } = spawnSync("ldd", [file], { encoding: "utf8" });
  // Statically linked, or for another C library.
  if (status !== 0 || stdout.includes("not found")) return undefined;
  return stdout.split("\n").flatMap((line) => /(?:^\s*|=> )(\/\S+)/.exec(line)?.[1] ?? []);
}

/**
 * Runs a program to its end, and returns what it printed.
 * @throws MissingError where it is not installed
 */
function run(program: string, args: readonly string[], options: SpawnSyncOptions): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    ...options,
    encoding: "utf8",
    maxBuffer: OUTPUT_LIMIT,
  });
  if ((error as NodeJS.ErrnoException | undefined)?.code === "ENOENT")
    throw new MissingError(`no ${program}`, `install the package ${PACKAGE_OF[program] ?? program}`);
  if (error || status !== 0) throw new Error(`${program} failed: ${stderr}`, { cause: error });
  return stdout;
}

/**
 * Writes the archive from which a guest boots: busybox, this machine's Node, the libraries that it and native addons
 * need, and the built project with the packages that it runs with. Nothing is copied to make it: a tree of links is
 * read by cpio.
 * @param root the project's folder, built
 * @param work an empty folder, in which the archive is made
 * @returns the archive's path
 * @throws MissingError without busybox or cpio
 */
export function makeInitramfs(root: string, work: string): string {
  const busybox = BUSYBOX.find((path) => existsSync(path));
  if (busybox === undefined) throw new MissingError("no busybox", "install the package busybox-static");

  const tree = join(work, "tree");
  for (const folder of ["proc", "sys", "dev", "tmp", "share", "hugepages"])
    mkdirSync(join(tree, folder), { recursive: true });
  place(tree, "init", join(root, "tools/vm/init"));
  place(tree, "bin/busybox", busybox);
  place(tree, "bin/node", process.execPath);

  const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { dependencies: object };
  const packages = packagesNeeded(root, [...Object.keys(manifest.dependencies), ...TEST_PACKAGES]);
  const binaries = [busybox, process.execPath];
  for (const folder of packages) {
    place(tree, join(GUEST_PROJECT, folder), join(root, folder));
    const files = readdirSync(join(root, folder), { recursive: true, encoding: "utf8" });
    binaries.push(...files.filter((name) => name.endsWith(".node")).map((name) => join(root, folder, name)));
  }
  for (const part of PROJECT_PARTS) place(tree, join(GUEST_PROJECT, part), join(root, part));
  for (const library of new Set(binaries.flatMap((binary) => librariesOf(binary) ?? []))) place(tree, library, library);

  const archive = join(work, "initramfs.cpio");
  const output = openSync(archive, "w");
  try {
    // Packages' maps and types are of no use in the guest.
    const unused = ["*/node_modules/*.map", "*/node_modules/*.ts", "*.d.ts"].flatMap((path) => ["!", "-path", path]);
    const names = run("find", ["-L", ".", ...unused, "-print0"], { cwd: tree, stdio: ["ignore", "pipe", "pipe"] });
    // A folder comes before what is in it.
    const sorted = `${names.split("\0").slice(0, -1).sort().join("\0")}\0`;
    const options = ["--create", "--dereference", "--format=newc", "--null", "--quiet"];
    run("cpio", options, { cwd: tree, input: sorted, stdio: ["pipe", output, "pipe"] });
  } finally {
    closeSync(output);
  }
  return archive;
}
