import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";

interface Manifest {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
  readonly peerDependencies?: Readonly<Record<string, string>>;
}

function manifestOf(folder: string): Manifest {
  return JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as Manifest;
}

/** The folder of a package as Node finds it from another folder; undefined where it is not installed. */
function resolve(name: string, from: string, root: string): string | undefined {
  for (let folder = from; ; folder = dirname(folder)) {
    const found = join(folder, "node_modules", name);
    if (existsSync(join(found, "package.json"))) return found;
    if (folder === root) return undefined;
  }
}

/**
 * The packages that these need to run, themselves included: folders relative to the project, sorted. What is optional,
 * or a peer, counts where it is installed.
 * @param root the project's folder
 * @param names packages that the project depends on
 * @throws Error where a package that is needed is not installed
 */
export function packagesNeeded(root: string, names: readonly string[]): readonly string[] {
  const found = new Set<string>();
  const visit = (name: string, from: string, optional: boolean): void => {
    const folder = resolve(name, from, root);
    if (folder === undefined) {
      if (optional) return;
      throw new Error(`${name}, which ${from} needs, is not installed: run npm ci`);
    }
    if (found.has(folder)) return;
    found.add(folder);
    const { dependencies = {}, optionalDependencies = {}, peerDependencies = {} } = manifestOf(folder);
    // npm repeats the optional ones among the dependencies.
    for (const next of Object.keys(dependencies)) visit(next, folder, next in optionalDependencies);
    for (const next of Object.keys({ ...optionalDependencies, ...peerDependencies })) visit(next, folder, true);
  };
  for (const name of names) visit(name, root, false);
  return [...found].map((folder) => folder.slice(root.length + 1)).sort();
}
