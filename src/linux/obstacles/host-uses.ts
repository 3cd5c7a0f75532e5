import { basename } from "node:path";
import type { Roots } from "../roots.js";
import { entries, readBytes, readValue } from "../sysfs/files.js";
import { realPath } from "../sysfs/name.js";

/*
 * What the host itself does with a device, and would lose with it: file systems, swap, the default route.
 */

/** Names in /sys/class/block and /sys/class/net. */
const NAME = /^[\x21-\x2e\x30-\x7e]{1,128}$/;

/** Tables of mounts, swaps and routes that are read; a busy host has some thousand mounts. */
const MAX_TABLE = 2 ** 20;

/** Mount points of a disk that are named; containers mount one many times. */
const NAMED_MOUNTS = 3;

/** Clauses such as "/ is mounted from its nvme0n1p2"; none where the host does without. @param device its folder in sysfs */
export function hostUses(roots: Roots, device: string): string[] {
  const folder = realPath(device);
  if (folder === null) return [];
  return [...diskUses(roots, folder), ...networkUses(roots, folder)];
}

function diskUses(roots: Roots, folder: string): string[] {
  const mounts = table(`${roots.proc}/self/mountinfo`).flatMap((fields) => {
    const dash = fields.indexOf("-");
    return dash < 6
      ? []
      : [{ number: fields[2], point: unescaped(fields[4]), source: basename(fields[dash + 2] ?? "") }];
  });
  const swaps = table(`${roots.proc}/swaps`).map(([path = ""]) => basename(path));
  return withHolders(roots, under(roots, "block", folder)).flatMap((disk) => {
    const number = readValue(`${roots.sys}/class/block/${disk}/dev`);
    // Btrfs mounts under a number of its own, and names the disk.
    const points = mounts.filter((mount) => mount.number === number || mount.source === disk).map(({ point }) => point);
    const named = [...new Set(points)].sort().slice(0, NAMED_MOUNTS).join(", ");
    return [
      ...(named === "" ? [] : [`${named} ${points.length === 1 ? "is" : "are"} mounted from its ${disk}`]),
      ...(swaps.includes(disk) ? [`swap is on its ${disk}`] : []),
    ];
  });
}

function networkUses(roots: Roots, folder: string): string[] {
  // Destination and mask in the one, destination and prefix length in the other; both are padded with zeros.
  const inet = table(`${roots.proc}/net/route`).filter(
    (fields) => fields[1] === "00000000" && fields[7] === "00000000",
  );
  const inet6 = table(`${roots.proc}/net/ipv6_route`).filter(([to, prefix]) => /^0{32}$/.test(to) && prefix === "00");
  const used = new Set([...inet.map(([name]) => name), ...inet6.map((fields) => fields[fields.length - 1])]);
  return under(roots, "net", folder)
    .filter((name) => [...withUppers(roots, name)].some((upper) => used.has(upper)))
    .map((name) => `the default route goes through its ${name}`);
}

/** The disks or interfaces that a device has. */
function under(roots: Roots, kind: "block" | "net", folder: string): string[] {
  const all = entries(`${roots.sys}/class/${kind}`, NAME);
  return all.filter((name) => realPath(`${roots.sys}/class/${kind}/${name}`)?.startsWith(`${folder}/`));
}

/** Disks, and what LVM, RAID and the like have made of them. */
function withHolders(roots: Roots, disks: readonly string[]): string[] {
  const found = new Set(disks);
  for (const disk of found)
    for (const holder of entries(`${roots.sys}/class/block/${disk}/holders`, NAME)) found.add(holder);
  return [...found];
}

/** An interface, and the bonds, bridges and VLANs that it is in. */
function withUppers(roots: Roots, name: string): Set<string> {
  const found = new Set([name]);
  for (const one of found) {
    for (const link of entries(`${roots.sys}/class/net/${one}`, /^upper_/)) found.add(link.slice("upper_".length));
  }
  return found;
}

/** The lines of a table in procfs, each as its fields. */
function table(path: string): string[][] {
  const text = readBytes(path, MAX_TABLE)?.toString("latin1") ?? "";
  return text
    .split("\n")
    .map((line) => line.split(/\s+/).filter((field) => field !== ""))
    .filter((fields) => fields.length > 0);
}

/** A path in mountinfo has blanks and the like in octal (proc_pid_mountinfo(5)); whatever is no printable ASCII is masked. */
function unescaped(text: string): string {
  return text
    .replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
    .replace(/[^\x20-\x7e]/g, "?");
}
