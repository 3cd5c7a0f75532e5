import { spawnSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type QemuArgument, qemuOptions } from "../../src/tracking/vmm/qemu.js";
import { MissingError } from "../vm/missing.js";
import { findQemu, type Qemu, type QemuNeed } from "../vm/qemu.js";
import { CASES, caseDevices } from "./vmm-cases.js";

/*
 * Every option that is printed, given to a real QEMU. No device is there that it could open, and no /dev/iommu is
 * needed: what counts is that QEMU fails over the missing device, and not over an option.
 */

const TIMEOUT_MS = 20_000;

/** The QEMU that has what is needed, or why there is none. */
function find(need: QemuNeed): { qemu: Qemu } | { missing: MissingError } {
  try {
    return { qemu: findQemu({ needs: [need] }) };
  } catch (error) {
    if (error instanceof MissingError) return { missing: error };
    throw error;
  }
}

function run({ program, prefix, env }: Qemu, options: readonly string[]): { status: number | null; output: string } {
  // Descriptor 3 stands for /dev/iommu: QEMU looks at it only once there is a device.
  const stand = openSync("/dev/null", "r+");
  try {
    const { status, stdout, stderr, error } = spawnSync(program, [...prefix, ...options], {
      env,
      stdio: ["ignore", "pipe", "pipe", stand],
      encoding: "utf8",
      timeout: TIMEOUT_MS,
    });
    if (error) throw error;
    return { status, output: `${stdout}${stderr}` };
  } finally {
    closeSync(stand);
  }
}

/** QEMU's major and minor version as one number that can be compared. */
function rank(version: string): number {
  const [, major, minor] = /(\d+)\.(\d+)/.exec(version) ?? [];
  return Number(major) * 1000 + Number(minor);
}

/** Starts a machine with all the objects and one of the devices. */
function start(qemu: Qemu, all: readonly QemuArgument[], device: QemuArgument): string {
  const objects = all.filter(({ option }) => option === "-object");
  const { status, output } = run(qemu, [
    ...["-machine", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S"],
    ...objects.flatMap(({ option, value }) => [option, `${value},fd=3`]),
    ...[device.option, device.value],
  ]);
  expect(status).toBe(1);
  return output;
}

// The newest that is to be had, and the one that this machine's Debian has.
const recent = find({ device: "vfio-pci", property: "x-device-dirty-page-tracking" });
const found = [recent, find({ device: "vfio-pci" })].flatMap((one) => ("qemu" in one ? [one.qemu] : []));
const qemus = [...new Map(found.map((qemu) => [qemu.from, qemu])).values()];

if ("missing" in recent) {
  const { missing } = recent;
  test.skipIf(!process.env.CI)(`a QEMU with all options: ${missing.message}`, () => {
    throw missing;
  });
}

describe.each(qemus)("QEMU in $from", (qemu) => {
  const version = run(qemu, ["-version"]).output.split("\n")[0];

  test.each(CASES)(
    "%s: QEMU takes all options if it is as new as is said, and misses only the device",
    async (name) => {
      const { arguments: all, oldest } = qemuOptions(await caseDevices(name));
      const devices = all.filter(({ option }) => option === "-device");
      expect(devices.length).toBeGreaterThan(0);
      for (const device of devices) {
        const output = start(qemu, all, device);
        if (rank(version) >= rank(oldest.version)) expect(output).toMatch(/no such host device/);
        else expect(output).toMatch(/does not accept value 'iommufd'|Property 'vfio-pci\.[a-z-]+' not found/);
      }
    },
  );

  test("an option that it does not know is refused, so that this test can fail", async () => {
    const { arguments: all } = qemuOptions(await caseDevices("case-b"));
    const device = {
      option: "-device",
      value: "vfio-pci,host=ffff:ff:1f.0,x-no-such-option=on",
      comment: "",
    } as const;
    expect(start(qemu, rank(version) >= rank("9.0") ? all : [], device)).toMatch(/x-no-such-option' not found/);
  });

  test.runIf(rank(version) >= rank("9.1"))("its help names every property that is printed", async () => {
    const help = run(qemu, ["-device", "vfio-pci,help"]).output;
    const printed = new Set<string>();
    for (const name of CASES) {
      for (const { option, value } of qemuOptions(await caseDevices(name)).arguments) {
        if (option === "-object") continue;
        for (const property of value.split(",").slice(1)) printed.add(property.split("=")[0]);
      }
    }
    printed.delete("id");
    const all = ["enable-migration", "host", "iommufd", "sysfsdev", "x-device-dirty-page-tracking"];
    expect([...printed].sort()).toEqual(all);
    // The last two stand in notes.
    for (const property of [...all, "x-pre-copy-dirty-page-tracking", "failover_pair_id"]) {
      expect(help).toMatch(new RegExp(`^  ${property}=`, "m"));
    }
    expect(run(qemu, ["-object", "help"]).output).toMatch(/^ {2}iommufd$/m);
  });
});
