import { execFile } from "node:child_process";
import { chmodSync, rmSync } from "node:fs";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../fake-system.test.helper.js";
import { ROOTS } from "../roots.js";
import { readHostState } from "./host.js";
import { parseRelease } from "./kernel.js";
import type { Obstacle } from "./obstacle.js";

const NEW = "7.2.13";
const execFileAsync = promisify(execFile);

let system = new FakeSystem();
beforeEach(() => {
  // A machine with an IOMMU, and no limit on locked memory, unless a test says otherwise.
  system.iommu("dmar0");
  system.file(`${system.roots.proc}/self/status`, "Name:\tnode\nCapEff:\t000001ffffffffff\n");
});
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

function missing(release = NEW): readonly Obstacle[] {
  return readHostState(system.roots, parseRelease(release)).missing;
}

function only(release = NEW): Obstacle {
  const obstacles = missing(release);
  expect(obstacles).toHaveLength(1);
  return obstacles[0];
}

test("a host that lacks nothing says so", () => {
  system.file(`${system.roots.dev}/iommu`, "");
  expect(readHostState(system.roots, parseRelease(NEW))).toEqual({
    kernel: NEW,
    iommufd: true,
    iommus: ["dmar0"],
    missing: [],
  });
});

describe("without /dev/iommu it says why and how to get it", () => {
  const config = (line: string) => system.file(`${system.roots.boot}/config-${NEW}`, `${line}\n`);

  test("the module is not loaded, by the configuration or by the modules that are there", () => {
    config("CONFIG_IOMMUFD=m");
    const dep = `${system.roots.modules}/${NEW}/modules.dep`;
    system.file(dep, "kernel/drivers/iommu/iommufd/iommufd.ko.zst:\n");
    expect(only()).toMatchObject({ code: "IOMMUFD_NOT_LOADED", commands: ["modprobe iommufd"] });
    system.file(dep, "kernel/drivers/vfio/vfio.ko:\n");
    expect(only()).toMatchObject({ code: "IOMMUFD_NOT_INSTALLED", commands: [] });
    rmSync(dep);
    // modprobe finds nothing in a container.
    expect(only()).toMatchObject({
      code: "IOMMUFD_NOT_LOADED",
      commands: [],
      remedy: expect.stringContaining("where they are"),
    });
    system[Symbol.dispose]();
    system = new FakeSystem();
    system.iommu("dmar0");
    system.file(`${system.roots.modules}/${NEW}/modules.dep`, "kernel/drivers/iommu/iommufd/iommufd.ko.zst:\n");
    expect(only()).toMatchObject({ code: "IOMMUFD_NOT_LOADED" });
  });

  test("the kernel was built without it", () => {
    config("# CONFIG_IOMMUFD is not set");
    expect(only()).toMatchObject({
      code: "IOMMUFD_NOT_BUILT",
      message: expect.stringContaining("(7.2.13) was built without CONFIG_IOMMUFD"),
      remedy: expect.stringContaining("6.7 or later"),
    });
  });

  test("the kernel is too old", () => {
    expect(only("5.15.0-91-generic")).toMatchObject({
      code: "IOMMUFD_KERNEL_TOO_OLD",
      message: expect.stringMatching(/Linux 5\.15\.0-91-generic, and iommufd came with 6\.2$/),
    });
  });

  test("the kernel has it, and only the node is not here", () => {
    system.file(`${system.roots.sys}/class/misc/iommu/dev`, "10:126\n");
    expect(only()).toMatchObject({
      code: "IOMMUFD_NO_NODE",
      commands: [`mknod -m 0660 ${system.roots.dev}/iommu c 10 126`],
    });
  });

  test("it is built in and did not start", () => {
    config("CONFIG_IOMMUFD=y");
    expect(only()).toMatchObject({ code: "IOMMUFD_DID_NOT_START" });
  });

  test("nothing tells", () => {
    expect(only()).toMatchObject({ code: "IOMMUFD_UNKNOWN", commands: [] });
  });
});

test("a node that this user may not open is named with its mode, and with who we are", async () => {
  const node = `${system.roots.dev}/iommu`;
  system.file(node, "");
  // Root may open everything, so that somebody else has to look.
  const asNobody = process.geteuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
  chmodSync(node, 0o040);
  const program = `
    const { readHostState } = await import(${JSON.stringify(new URL("./host.js", import.meta.url).href)});
    console.log(JSON.stringify(readHostState(${JSON.stringify(system.roots)}, { release: "7.2.13", major: 7, minor: 2 })));`;
  const { stdout } = await execFileAsync(process.execPath, ["--input-type=module", "-e", program], {
    ...asNobody,
    timeout: 20_000,
  });
  const state = JSON.parse(stdout);
  expect(state.iommufd).toBe(false);
  expect(state.missing[0]).toMatchObject({
    code: "IOMMUFD_NOT_PERMITTED",
    message: expect.stringMatching(/has mode 0040 of user \d+, group \d+, and this is user \d+, groups? [\d, ]+$/),
  });
});

test("a kernel with iommufd and without its dirty tracking says from when on there is any", () => {
  system.file(`${system.roots.dev}/iommu`, "");
  expect(only("6.6.8")).toMatchObject({ code: "NO_DIRTY_TRACKING_IN_KERNEL" });
  expect(missing("6.7.0")).toEqual([]);
});

describe("without an IOMMU in use it says where it got lost", () => {
  beforeEach(() => {
    system[Symbol.dispose]();
    system = new FakeSystem();
    system.file(`${system.roots.dev}/iommu`, "");
  });
  const tables = (name: string) => system.file(`${system.roots.sys}/firmware/acpi/tables/${name}`, "");

  test("on the kernel's command line", () => {
    system.file(`${system.roots.proc}/cmdline`, "root=/dev/sda1 intel_iommu=off quiet\n");
    expect(only()).toMatchObject({
      code: "NO_IOMMU",
      message: expect.stringMatching(/started with 'intel_iommu=off'$/),
      remedy: "start it without",
    });
  });

  test("in the kernel, which leaves Intel's off unless told", () => {
    tables("DMAR");
    expect(only().remedy).toBe("start the kernel with intel_iommu=on");
  });

  test("while the kernel started it", () => {
    tables("IVRS");
    expect(only().message).toMatch(/the firmware has one \(table IVRS\), but the kernel could not start it$/);
  });

  test("in the firmware, or in a virtual machine that has none", () => {
    expect(only().remedy).toMatch(/^switch VT-d, AMD-Vi or the SMMU on in the firmware/);
    system.file(`${system.roots.proc}/cpuinfo`, "processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n");
    expect(only().message).toMatch(/this is a virtual machine without one$/);
  });
});

describe("the limit on locked memory", () => {
  beforeEach(() => {
    system.file(`${system.roots.dev}/iommu`, "");
    system.file(
      `${system.roots.proc}/self/limits`,
      "Limit  Soft  Hard  Units\nMax locked memory  8388608  8388608  bytes\n",
    );
  });

  test("is an obstacle with its value and the ways to raise it", () => {
    system.file(`${system.roots.proc}/self/status`, "CapEff:\t0000000000000000\n");
    expect(only()).toMatchObject({
      code: "MEMLOCK_TOO_LOW",
      message: expect.stringContaining("may lock 8192 KiB of memory"),
      remedy: expect.stringMatching(/ulimit -l.*LimitMEMLOCK=.*CAP_IPC_LOCK/),
    });
  });

  test("does not count for who has CAP_IPC_LOCK, or has no limit", () => {
    system.file(`${system.roots.proc}/self/status`, "CapEff:\t0000000000004000\n");
    expect(missing()).toEqual([]);
    system.file(`${system.roots.proc}/self/status`, "CapEff:\t0000000000000000\n");
    system.file(`${system.roots.proc}/self/limits`, "Max locked memory  unlimited  unlimited  bytes\n");
    expect(missing()).toEqual([]);
  });
});

test("this machine is looked at without an error, and every sentence of it is one line", () => {
  for (const { message, remedy, commands } of readHostState(ROOTS).missing) {
    for (const text of [message, remedy, ...commands]) expect(text).not.toMatch(/\n|undefined|null|NaN/);
  }
});
