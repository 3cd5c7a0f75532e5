import { spawnSync } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { delimiter, join } from "node:path";
import { cacheFolder } from "./cache.js";
import { MissingError } from "./missing.js";

/** What a QEMU must have: a device, and of it a property. */
export interface QemuNeed {
  /** As `-device` names it. */
  readonly device: string;
  readonly property?: string;
}

/** A QEMU that can be started: `spawn(program, [...prefix, ...options], { env })`. */
export interface Qemu {
  readonly program: string;
  /** What goes before QEMU's own options. */
  readonly prefix: readonly string[];
  readonly env: NodeJS.ProcessEnv;
  /** Where it was found, for messages. */
  readonly from: string;
}

const PROGRAM = "qemu-system-x86_64";
const PROBE_TIMEOUT_MS = 20_000;
const GETTING_ONE =
  "install qemu-system-x86 9.2 or later, or run scripts/kernel/qemu-tree.sh as root, or set DIRTMAP_QEMU";

/** Where `scripts/kernel/qemu-tree.sh` puts the tree that has a newer QEMU than this machine's Debian. */
export function qemuTree(): string {
  return join(cacheFolder(), "qemu-tree");
}

/** The QEMU in a Debian tree, run without chroot: with the tree's loader, libraries, modules and firmware. */
export function qemuInTree(tree: string, name = PROGRAM): Qemu {
  const libraries = join(tree, "usr/lib/x86_64-linux-gnu");
  return {
    program: join(libraries, "ld-linux-x86-64.so.2"),
    prefix: [
      "--library-path",
      `${libraries}:${join(libraries, "pulseaudio")}`,
      join(tree, "usr/bin", name),
      "-L",
      join(tree, "usr/share/qemu"),
      "-L",
      join(tree, "usr/share/seabios"),
    ],
    env: { ...process.env, QEMU_MODULE_DIR: join(libraries, "qemu") },
    from: tree,
  };
}

/** A QEMU that is a program of its own. */
function qemuProgram(path: string): Qemu {
  return { program: path, prefix: [], env: process.env, from: path };
}

/** The need as one would say it on QEMU's command line. */
function named({ device, property }: QemuNeed): string {
  return property === undefined ? device : `${device},${property}=`;
}

/** Which of the needs this QEMU doesn't meet, asked with `-device NAME,help`. */
export function lacking(qemu: Qemu, needs: readonly QemuNeed[]): readonly string[] {
  return needs
    .filter(({ device, property }) => {
      const { status, stdout } = spawnSync(qemu.program, [...qemu.prefix, "-device", `${device},help`], {
        env: qemu.env,
        encoding: "utf8",
        timeout: PROBE_TIMEOUT_MS,
      });
      // For a device that it doesn't know QEMU prints an error, and ends with status 0.
      if (status !== 0 || stdout.trim() === "") return true;
      return property !== undefined && !stdout.split("\n").some((line) => line.trimStart().startsWith(`${property}=`));
    })
    .map(named);
}

/** Where a QEMU may be, in the order in which they are tried. */
function candidates(name: string): readonly Qemu[] {
  const path = (process.env.PATH ?? "").split(delimiter).filter((folder) => folder !== "");
  const installed = path.map((folder) => join(folder, name)).find((program) => existsSync(program));
  const tree = qemuTree();
  return [
    ...(installed === undefined ? [] : [qemuProgram(installed)]),
    ...(existsSync(join(tree, "usr/bin", name)) ? [qemuInTree(tree, name)] : []),
  ];
}

/**
 * A QEMU that has these devices: DIRTMAP_QEMU (a program, or a Debian tree) if it is set, else the one in PATH, else
 * the tree in the cache.
 * @param needs devices, and properties of them
 * @param name of the program, for another architecture; DIRTMAP_QEMU then counts if it is a tree
 * @throws MissingError where there is none, saying how to get one
 */
export function findQemu({
  needs,
  name = PROGRAM,
}: {
  readonly needs: readonly QemuNeed[];
  readonly name?: string;
}): Qemu {
  const given = process.env.DIRTMAP_QEMU;
  if (given && !existsSync(given)) throw new MissingError(`DIRTMAP_QEMU: there is no ${given}`, GETTING_ONE);
  const isTree = given !== undefined && given !== "" && statSync(given).isDirectory();
  const own = isTree ? qemuInTree(given, name) : given && name === PROGRAM ? qemuProgram(given) : null;
  const all = own === null ? candidates(name) : [own];
  const refused: string[] = [];
  for (const qemu of all) {
    const lacks = lacking(qemu, needs);
    if (lacks.length === 0) return qemu;
    refused.push(`${qemu.from} has no ${lacks.join(", ")}`);
  }
  throw new MissingError(`no QEMU for this${refused.length > 0 ? ` (${refused.join("; ")})` : ""}`, GETTING_ONE);
}
