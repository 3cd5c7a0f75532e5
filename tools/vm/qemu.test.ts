import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { MissingError } from "./missing.js";
import { findQemu, qemuTree } from "./qemu.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "dirtmap-qemu-"));
  vi.stubEnv("DIRTMAP_QEMU", "");
  // The tools that the stand-ins below are made of, and no QEMU.
  vi.stubEnv("PATH", ["/usr/local/nowhere", join(folder, "bin")].join(delimiter));
  vi.stubEnv("XDG_CACHE_HOME", join(folder, "cache"));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

/**
 * A program that answers `-device NAME,help`, wherever in the command line, as a QEMU with these devices does: also for
 * those that it doesn't have it ends with status 0.
 */
function standIn(path: string, devices: Readonly<Record<string, readonly string[]>>): void {
  const cases = Object.entries(devices).map(
    ([device, properties]) =>
      `*"-device ${device},help") printf '${device} options:\\n${properties.map((name) => `  ${name}=<bool> - on/off\\n`).join("")}';;`,
  );
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, `#!/bin/sh\ncase "$*" in\n${cases.join("\n")}\n*) echo "Device not found" >&2;;\nesac\n`);
  chmodSync(path, 0o755);
}

const inPath = () => join(folder, "bin/qemu-system-x86_64");

/** Makes a tree with a QEMU in it; the stand-in takes the place of the loader, which is what is started. */
function makeTree(tree: string, devices: Readonly<Record<string, readonly string[]>>): void {
  mkdirSync(join(tree, "usr/bin"), { recursive: true });
  writeFileSync(join(tree, "usr/bin/qemu-system-x86_64"), "");
  standIn(join(tree, "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), devices);
}

const NEEDS = [{ device: "edu" }, { device: "amd-iommu", property: "dma-remap" }];
const NEW = { edu: [], "amd-iommu": ["device-iotlb", "dma-remap"] };
const OLD = { edu: [], "amd-iommu": ["device-iotlb"] };

test("the QEMU in PATH is taken if it has the devices, and their properties", () => {
  standIn(inPath(), NEW);
  makeTree(qemuTree(), NEW);
  expect(findQemu({ needs: NEEDS })).toMatchObject({ program: inPath(), prefix: [] });
});

test("where the one in PATH lacks a device, the one in the cache's tree is taken", () => {
  standIn(inPath(), { "amd-iommu": ["dma-remap"] });
  makeTree(qemuTree(), NEW);
  expect(findQemu({ needs: NEEDS }).from).toBe(qemuTree());
});

test("where the one in PATH lacks a property, the one in the cache's tree is taken", () => {
  standIn(inPath(), OLD);
  makeTree(qemuTree(), NEW);
  expect(findQemu({ needs: NEEDS }).from).toBe(qemuTree());
  expect(findQemu({ needs: [{ device: "edu" }] }).from).toBe(inPath());
});

test("DIRTMAP_QEMU overrules both, and may be a program or a tree", () => {
  standIn(inPath(), NEW);
  standIn(join(folder, "mine"), NEW);
  makeTree(join(folder, "tree"), NEW);
  vi.stubEnv("DIRTMAP_QEMU", join(folder, "mine"));
  expect(findQemu({ needs: NEEDS }).program).toBe(join(folder, "mine"));
  vi.stubEnv("DIRTMAP_QEMU", join(folder, "tree"));
  expect(findQemu({ needs: NEEDS }).env.QEMU_MODULE_DIR).toBe(join(folder, "tree/usr/lib/x86_64-linux-gnu/qemu"));
});

test("a DIRTMAP_QEMU that lacks something is not passed over for another", () => {
  standIn(inPath(), NEW);
  standIn(join(folder, "mine"), OLD);
  vi.stubEnv("DIRTMAP_QEMU", join(folder, "mine"));
  expect(() => findQemu({ needs: NEEDS })).toThrow(`${join(folder, "mine")} has no amd-iommu,dma-remap=`);
});

test("a DIRTMAP_QEMU that isn't there is a missing piece", () => {
  vi.stubEnv("DIRTMAP_QEMU", join(folder, "nowhere"));
  expect(() => findQemu({ needs: [] })).toThrow(MissingError);
});

test("without any, the error says how to get one", () => {
  expect(() => findQemu({ needs: NEEDS })).toThrow(MissingError);
  expect(() => findQemu({ needs: NEEDS })).toThrow(/install qemu-system-x86 .* or run scripts\/kernel\/qemu-tree.sh/);
});
