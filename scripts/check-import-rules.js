// Checks that the import rules check: each fixture in test/import-rules breaks a folder's rules on purpose, and Biome,
// with the rules of biome.json, has to report exactly the lines that say so. Lint itself runs with `npm run lint`.
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const biome = join(dirname(require.resolve("@biomejs/biome/package.json")), "bin/biome");
const RULE = "lint/style/noRestrictedImports";

/** What a fixture says of its lines: number → must it be reported? */
function expectations(path) {
  return readFileSync(path, "utf8")
    .split("\n")
    .flatMap((line, index) => {
      const [, verdict] = /\/\/ (refused|allowed)$/.exec(line) ?? [];
      return verdict === undefined ? [] : [{ line: index + 1, text: line, refused: verdict === "refused" }];
    });
}

/** `file:line` of each import that Biome reports in the folder. */
function reported(folder) {
  const { stdout, stderr, error } = spawnSync(
    process.execPath,
    [biome, "lint", "--reporter=github", "--max-diagnostics=none", `--only=${RULE.slice("lint/".length)}`, "."],
    { cwd: folder, encoding: "utf8" },
  );
  if (error) throw error;
  const found = [...stdout.matchAll(/title=([^,]+),file=([^,]+),line=(\d+)/g)].filter(([, title]) => title === RULE);
  if (found.length === 0) throw new Error(`Biome reported nothing at all:\n${stdout}${stderr}`);
  return new Set(found.map(([, , file, line]) => `${relative(folder, file)}:${line}`));
}

const folder = realpathSync(mkdtempSync(join(tmpdir(), "dirtmap-import-rules-")));
try {
  cpSync(join(root, "test/import-rules"), folder, { recursive: true });
  // The project's own configuration, without what keeps the fixtures out of its own lint.
  const { $schema, vcs, files, ...rules } = JSON.parse(readFileSync(join(root, "biome.json"), "utf8"));
  writeFileSync(join(folder, "biome.json"), JSON.stringify({ ...rules, root: true }));
  const fixtures = readdirSync(folder, { recursive: true }).filter((name) => name.endsWith("fixture.ts"));
  const folders = readdirSync(join(root, "src"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const found = reported(folder);
  const wrong = [];
  for (const { name } of folders) {
    if (!fixtures.includes(join("src", name, "fixture.ts")))
      wrong.push(`src/${name} has no fixture in test/import-rules`);
  }
  let checked = 0;
  for (const fixture of fixtures) {
    for (const { line, text, refused } of expectations(join(folder, fixture))) {
      checked++;
      if (found.has(`${fixture}:${line}`) === refused) continue;
      wrong.push(`${fixture}:${line} must be ${refused ? "reported" : "let pass"}: ${text}`);
    }
  }
  for (const message of wrong) console.error(message);
  console.log(`import rules: ${checked} imports in ${fixtures.length} fixtures, ${wrong.length} judged wrongly`);
  if (wrong.length > 0) process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
