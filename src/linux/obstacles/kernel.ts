import { release } from "node:os";
import { gunzipSync } from "node:zlib";
import type { Roots } from "../roots.js";
import { readBytes } from "../sysfs/files.js";

/** A kernel's version, as far as features go by it. */
export interface KernelVersion {
  readonly release: string;
  readonly major: number;
  readonly minor: number;
}

/** The running kernel. */
export function runningKernel(): KernelVersion {
  return parseRelease(release());
}

/** Takes `6.18.44-fc` apart; what is no release counts as 0.0. */
export function parseRelease(text: string): KernelVersion {
  const [, major = "0", minor = "0"] = /^(\d{1,4})\.(\d{1,4})/.exec(text) ?? [];
  return { release: text, major: Number(major), minor: Number(minor) };
}

/** True for a kernel older than `major.minor`. */
export function isOlder(kernel: KernelVersion, [major, minor]: readonly [number, number]): boolean {
  return kernel.major < major || (kernel.major === major && kernel.minor < minor);
}

/** `y`, `m`, or `n` for what it was built with; null where the kernel's configuration can't be read. */
export type ConfigValue = "y" | "m" | "n" | null;

/** A configuration has some 10 000 lines; several times that. */
const MAX_CONFIG = 4 * 2 ** 20;

/** Looks options up in the running kernel's configuration: /proc/config.gz, else /boot/config-RELEASE. */
export function readKernelConfig(roots: Roots, kernel: KernelVersion): (option: string) => ConfigValue {
  const text = configText(roots, kernel);
  return (option) => {
    if (text === null) return null;
    const set = new RegExp(`^${option}=([ym])$`, "m").exec(text);
    return set === null ? "n" : (set[1] as "y" | "m");
  };
}

function configText(roots: Roots, { release }: KernelVersion): string | null {
  const compressed = readBytes(`${roots.proc}/config.gz`, MAX_CONFIG);
  if (compressed !== null && compressed.length > 0) {
    try {
      return gunzipSync(compressed, { maxOutputLength: MAX_CONFIG }).toString("latin1");
    } catch {
      // Not gzip, or cut off: the copy in /boot may be better.
    }
  }
  return readBytes(`${roots.boot}/config-${release}`, MAX_CONFIG)?.toString("latin1") ?? null;
}

/** Lists of modules have some hundred thousand characters. */
export const MAX_MODULE_LIST = 16 * 2 ** 20;

/**
 * Whether modprobe would find a module of this name for the running kernel, or has it built in; `unknown` where this file
 * system has no list of the kernel's modules, as in a container.
 */
export function hasModule(roots: Roots, { release }: KernelVersion, module: string): boolean | "unknown" {
  const list = (name: string) => readBytes(`${roots.modules}/${release}/${name}`, MAX_MODULE_LIST)?.toString("latin1");
  const loadable = list("modules.dep");
  if (loadable === undefined) return "unknown";
  // modprobe takes `-` and `_` in a module's name for the same.
  const name = module.replace(/[-_]/g, "[-_]");
  if (new RegExp(`(^|/)${name}\\.ko(\\.[a-z0-9]+)?:`, "m").test(loadable)) return true;
  return new RegExp(`(^|/)${name}\\.ko$`, "m").test(list("modules.builtin") ?? "");
}
