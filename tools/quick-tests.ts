import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";

/*
 * Which tests `npm run test:quick` runs: those that lie beside their code, and of which neither the test nor anything that it
 * imports, however indirectly, imports a module of Node's that starts processes or threads, or opens sockets. So a test is
 * quick by what it is made of, and no list has to be kept.
 */

/** Folders whose tests lie beside the code. */
const BESIDE_CODE = ["src", "tools"];

/** What starts processes or threads, or opens sockets. */
const SLOW_MODULES: ReadonlySet<string> = new Set(
  ["child_process", "cluster", "dgram", "http", "http2", "https", "net", "tls", "worker_threads"].map(
    (name) => `node:${name}`,
  ),
);

/** In compiled files: `import ... from`, `export ... from`, a bare import, and import() of a name. */
const IMPORTS = /^(?:import|export)\b[^;"']*?\bfrom\s*"([^"]+)"|^import\s*"([^"]+)"|\bimport\(\s*"([^"]+)"\s*\)/gm;

/** Names of the modules that a compiled file imports. */
export function importsOf(text: string): string[] {
  return [...text.matchAll(IMPORTS)].map(([, from, bare, loaded]) => from ?? bare ?? loaded);
}

/**
 * The quick tests of a built project.
 * @param root the project's folder
 * @returns paths of compiled test files, relative to it
 */
export function quickTests(root: string): string[] {
  const known = new Map<string, readonly string[]>();
  const importsAt = (file: string): readonly string[] => {
    const imports = known.get(file) ?? (existsSync(file) ? importsOf(readFileSync(file, "utf8")) : []);
    known.set(file, imports);
    return imports;
  };

  function isQuick(test: string): boolean {
    // A Set hands out what is added to it while it is gone through.
    const files = new Set([test]);
    for (const file of files) {
      for (const name of importsAt(file)) {
        if (SLOW_MODULES.has(name)) return false;
        if (name.startsWith(".")) files.add(resolve(dirname(file), name));
      }
    }
    return true;
  }

  return BESIDE_CODE.map((folder) => join(root, "dist", folder))
    .filter((folder) => existsSync(folder))
    .flatMap((folder) =>
      readdirSync(folder, { recursive: true, encoding: "utf8" })
        .filter((name) => name.endsWith(".test.js"))
        .map((name) => join(folder, name)),
    )
    .filter(isQuick)
    .map((path) => relative(root, path))
    .sort();
}
