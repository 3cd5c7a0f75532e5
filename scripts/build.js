// Builds everything into dist/: the WebAssembly kernels (AssemblyScript), the TypeScript, and the dashboard's page.
// Tests and workers run on this output; see docs/decisions.md.
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);

/** The program's file in its package, so that the build needs neither a shell nor PATH. */
function programOf(packageName, program) {
  const manifest = require.resolve(`${packageName}/package.json`);
  return join(dirname(manifest), require(manifest).bin[program]);
}

function run(script, args) {
  const { status, error } = spawnSync(process.execPath, [script, ...args], { cwd: root, stdio: ["ignore", 2, 2] });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

function modified(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

if (process.argv.includes("--clean")) rmSync(join(root, "dist"), { recursive: true, force: true });

const assembly = join(root, "src/kernels/assembly");
const wasm = join(root, "dist/src/kernels/kernels.wasm");
const sources = readdirSync(assembly)
  .filter((name) => name.endsWith(".ts"))
  .map((name) => join(assembly, name));
if (sources.some((source) => modified(source) > modified(wasm))) {
  mkdirSync(dirname(wasm), { recursive: true });
  run(programOf("assemblyscript", "asc"), [
    join(assembly, "index.ts"),
    "--outFile",
    wasm,
    "-O3",
    "--noAssert",
    "--runtime",
    "stub",
    "--importMemory",
    "--sharedMemory",
    "--initialMemory",
    "1",
    "--maximumMemory",
    "65536",
    "--enable",
    "simd",
    "--enable",
    "threads",
    "--enable",
    "bulk-memory",
  ]);
}
// A project a folder of src/; its references are what it may import (docs/architecture.md).
run(programOf("typescript", "tsc"), ["--build", root]);

// The page: its modules are served as they are compiled, beside what they import from elsewhere; there is no bundler.
const page = join(root, "dist/web");
const uplot = dirname(require.resolve("uplot/package.json"));
mkdirSync(page, { recursive: true });
for (const name of readdirSync(join(root, "web"))) {
  if (/\.(html|css|svg)$/.test(name)) copyFileSync(join(root, "web", name), join(page, name));
}
for (const [from, to] of [
  [join(uplot, "dist/uPlot.esm.js"), "vendor/uplot.js"],
  [join(uplot, "dist/uPlot.d.ts"), "vendor/uplot.d.ts"],
  [join(uplot, "dist/uPlot.min.css"), "vendor/uplot.css"],
  [join(uplot, "LICENSE"), "vendor/uplot.LICENSE"],
  // What it shares with the rest lies as it does there; none of these imports anything but another one of them.
  ...[
    "memory/address",
    "migration/report",
    "observe/conditions",
    "observe/format",
    "observe/run-state",
    "tracking/owner",
  ].map((name) => [join(root, `dist/src/${name}.js`), `src/${name}.js`]),
]) {
  mkdirSync(dirname(join(page, to)), { recursive: true });
  copyFileSync(from, join(page, to));
}
run(programOf("typescript", "tsc"), ["-p", join(root, "web/tsconfig.json")]);
