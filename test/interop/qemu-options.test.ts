import { spawnSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type QemuArgument, qemuOptions } from "../../src/vmm-options/qemu-command-line.js";
import { MissingError } from "../../tools/vm/missing.js";
import { findQemu, type Qemu, type QemuNeed } from "../../tools/vm/qemu.js";
import { requireFound } from "../support/required.js";
import { generatedPlans, SEEDS } from "./generated-hosts.js";
import { CASES, caseDevices } from "./vmm-cases.js";

/*
 * Every option that is printed, given to a real QEMU. No device is there that it could open, and no /dev/iommu is
 * needed: what counts is that QEMU fails over the missing device, and not over an option.
 */

const TIMEOUT_MS = 20_000;

/** The QEMU that has what is needed, or why there is none. */
function find(need: QemuNeed, name?: string): { qemu: Qemu } | { missing: MissingError } {
  try {
    return { qemu: findQemu({ needs: [need], ...(name === undefined ? {} : { name }) }) };
  } catch (error) {
    if (error instanceof MissingError) return { missing: error };
    throw error;
  }
}

function run(
  { program, prefix, env }: Qemu,
  options: readonly string[],
  input = "",
): { status: number | null; output: string } {
  // Descriptor 3 stands for /dev/iommu: QEMU looks at it only once there is a device.
  const stand = openSync("/dev/null", "r+");
  try {
    const { status, stdout, stderr, error } = spawnSync(program, [...prefix, ...options], {
      env,
      stdio: ["pipe", "pipe", "pipe", stand],
      input,
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

/**
 * What a QEMU says to each of the devices, plugged in one after the other into one machine.
 * @param machine one whose first PCI bus takes devices while it runs
 */
function plugIn(qemu: Qemu, machine: string, options: readonly QemuArgument[]): { device: string; says: string }[] {
  const objects = new Set(options.filter(({ option }) => option === "-object").map(({ value }) => value));
  const devices = options.filter(({ option }) => option === "-device").map(({ value }) => value);
  const commands = [
    { execute: "qmp_capabilities" },
    ...devices.map((device, id) => ({
      execute: "human-monitor-command",
      arguments: { "command-line": `device_add ${device}` },
      id,
    })),
    { execute: "quit" },
  ];
  const { status, output } = run(
    qemu,
    [
      ...["-machine", `${machine},accel=tcg`, "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"],
      ...[...objects].flatMap((value) => ["-object", `${value},fd=3`]),
    ],
    commands.map((command) => JSON.stringify(command)).join("\n"),
  );
  expect(status, output).toBe(0);
  const answers = output
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as { id?: number; return?: string });
  return devices.map((device, id) => ({ device, says: String(answers.find((answer) => answer.id === id)?.return) }));
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

if ("missing" in recent) requireFound("a QEMU with all options", recent.missing);

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

  test.runIf(rank(version) >= rank("9.1"))(`made-up hosts of every kind, ${SEEDS}`, async () => {
    const options = (await generatedPlans()).flatMap(({ plan }) => plan.qemu.arguments);
    const bad = { option: "-device", value: "vfio-pci,host=0:0:0.8,x-no-such-option=on", comment: "" } as const;
    const said = plugIn(qemu, "pc", [...options, bad]);
    // The last is there so that this test can fail. mdevs of s390 are for another QEMU.
    expect(said.pop()?.says).toMatch(/doesn't take value|not found/);
    const own = said.filter(({ device }) => device.startsWith("vfio-pci,"));
    expect(own.length).toBeGreaterThan(16);
    expect(own.filter(({ says }) => !/no such host device/.test(says))).toEqual([]);
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

test(`whatever the host, each object that is named is there, is used, and each device is given once, ${SEEDS}`, async () => {
  for (const made of await generatedPlans()) {
    const { arguments: options } = made.plan.qemu;
    const objects = options.flatMap(({ option, value }) =>
      option === "-object" ? [value.replace("iommufd,id=", "")] : [],
    );
    const devices = options.flatMap(({ option, value }) => (option === "-device" ? [value] : []));
    const used = devices.flatMap((device) => /,iommufd=([a-zA-Z0-9-]+)/.exec(device)?.[1] ?? []);
    expect([...new Set(used)].sort(), `seed ${made.seed}`).toEqual([...objects].sort());
    const ids = devices.map((device) => /,id=([^,]+)/.exec(device)?.[1]);
    expect(new Set(ids).size, `seed ${made.seed}`).toBe(devices.length);
    const leftOut = made.plan.leftOut.map(({ id }) => id);
    const planned = made.plan.devices.map(({ choice }) => choice.device).filter((id) => !leftOut.includes(id));
    expect(devices, `seed ${made.seed}`).toHaveLength(planned.length);
    for (const id of planned) expect(devices.join("\n")).toContain(id);
  }
});

describe("mdevs of s390", () => {
  const s390 = find({ device: "vfio-ccw" }, "qemu-system-s390x");
  const qemu = "qemu" in s390 ? s390.qemu : null;

  test.skipIf(qemu === null)(
    `are taken by the QEMU for it, and QEMU has each property that is printed, ${SEEDS}`,
    async () => {
      if (qemu === null) return;
      const options = (await generatedPlans()).flatMap(({ plan }) => plan.qemu.arguments);
      const said = plugIn(qemu, "s390-ccw-virtio", options);
      const missing = {
        "vfio-pci": /no such host device/,
        "vfio-ccw": /not found: No such file/,
        "vfio-ap": /No 'ap-bus'/,
      };
      const ap = new Set<string>();
      for (const { device, says } of said) {
        const [model, ...properties] = device.split(",");
        expect(says, device).toMatch(missing[model as keyof typeof missing]);
        // An AP bus needs a processor that TCG does not have, and is looked for before the properties.
        if (model === "vfio-ap") for (const property of properties) ap.add(property.split("=")[0]);
      }
      const help = run(qemu, ["-device", "vfio-ap,help"]).output;
      ap.delete("id");
      for (const property of ap) expect(help).toMatch(new RegExp(`^  ${property}=`, "m"));
    },
  );
});
