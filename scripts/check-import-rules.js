// Checks that the import rules check. A folder of src/ may import what its tsconfig.json references, and what lies below that.
// Every build keeps to it. Here each folder imports each other one, in a copy of the projects with a few files apiece, and
// the compiler has to refuse exactly those imports that no reference allows.
import { spawnSync } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const typescript = dirname(require.resolve("typescript/package.json"));
const tsc = join(typescript, require("typescript/package.json").bin.tsc);

const folders = readdirSync(join(root, "src"), { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);
const references = (folder) =>
  JSON.parse(readFileSync(join(root, "src", folder, "tsconfig.json"), "utf8"))
    .references.map(({ path }) => basename(path))
    .filter((name) => folders.includes(name));
/** What a folder references, and what that references: all that the compiler lets it import. */
const below = (folder) => new Set(references(folder).flatMap((name) => [name, ...below(name)]));

/** What other folders import: by a declaration, and by import(). */
const TARGETS = ["imported", "loaded"];

const copy = realpathSync(mkdtempSync(join(tmpdir(), "dirtmap-import-rules-")));
try {
  const { compilerOptions, ...base } = JSON.parse(readFileSync(join(root, "tsconfig.base.json"), "utf8"));
  // Only imports are looked at: the copy has no packages.
  writeFileSync(
    join(copy, "tsconfig.base.json"),
    JSON.stringify({ ...base, compilerOptions: { ...compilerOptions, types: [] } }),
  );
  writeFileSync(join(copy, "package.json"), '{ "type": "module" }');
  for (const folder of folders) {
    const here = join(copy, "src", folder);
    mkdirSync(join(here, "deeper"), { recursive: true });
    cpSync(join(root, "src", folder, "tsconfig.json"), join(here, "tsconfig.json"));
    for (const target of TARGETS) writeFileSync(join(here, `${target}.ts`), `export const name = "${folder}";\n`);
    for (const other of folders.filter((name) => name !== folder)) {
      writeFileSync(join(here, `${other}.ts`), `export { name } from "../${other}/imported.js";\n`);
      writeFileSync(
        join(here, "deeper", `${other}.ts`),
        `export const load = () => import("../../${other}/loaded.js");\n`,
      );
    }
  }
  for (const name of readdirSync(join(root, "src")).filter((name) => /\.(json|ts)$/.test(name))) {
    cpSync(join(root, "src", name), join(copy, "src", name));
  }
  const projects = folders.map((folder) => join(copy, "src", folder));
  const { stdout, error } = spawnSync(process.execPath, [tsc, "--build", "--pretty", "false", ...projects], {
    encoding: "utf8",
  });
  if (error) throw error;
  const refused = new Set(
    [
      ...stdout.matchAll(
        /File '\S+\/src\/(\S+)\.ts' is not listed within the file list of project '\S+\/src\/(\S+)\/tsconfig/g,
      ),
    ].map(([, file, folder]) => `${folder} to ${file}`),
  );
  const wrong = folders.flatMap((folder) => {
    const allowed = below(folder);
    return folders
      .filter((other) => other !== folder)
      .flatMap((other) =>
        TARGETS.map((target) => ({ rule: `${folder} to ${other}/${target}`, may: allowed.has(other) })),
      )
      .filter(({ rule, may }) => refused.has(rule) === may)
      .map(({ rule, may }) => `${rule}: ${may ? "refused" : "let pass"}`);
  });
  if (refused.size === 0) throw new Error(`the compiler refuses nothing:\n${stdout}`);
  for (const line of wrong) console.error(line);
  if (wrong.length > 0) process.exitCode = 1;
  else console.log(`${folders.length} folders: all ${refused.size} imports that no reference allows are refused`);
} finally {
  rmSync(copy, { recursive: true, force: true });
}
