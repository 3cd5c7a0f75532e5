import { rmSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import { FakeSystem } from "../fake-system.test.helper.js";
import type { LinuxDevice } from "../sysfs/device.js";
import { findDevices } from "../sysfs/find.js";
import { deviceObstacles, explainRefusal } from "./device.js";
import { parseRelease } from "./kernel.js";

const VF = "0000:3b:00.1";
const NEW = parseRelease("7.2.13");

let system = new FakeSystem();
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

function device(id = VF): LinuxDevice {
  const found = findDevices(system.roots).find((candidate) => candidate.id === id);
  if (found === undefined) throw new Error(`the fixture has no ${id}`);
  return found;
}

const obstacles = (id = VF, kernel = NEW) => deviceObstacles(system.roots, device(id), kernel);

test("nothing is missing for a device on a VFIO driver with a cdev that we may open", () => {
  system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
  expect(obstacles()).toEqual([]);
});

describe("a device on another driver", () => {
  test("names it, and the commands that bind it to the VFIO driver made for it", () => {
    system.file(
      `${system.roots.modules}/7.2.13/modules.alias`,
      "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n",
    );
    system.pci(VF, {
      driver: "mlx5_core",
      group: 1,
      modalias: "pci:v000015B3d0000101Esv000015B3sd00000055bc02sc00i00",
    });
    const { sys } = system.roots;
    expect(obstacles()).toEqual([
      {
        code: "NOT_A_VFIO_DRIVER",
        message: "its driver is mlx5_core, no VFIO driver",
        remedy: "bind it to mlx5_vfio_pci; mlx5_core, and the host, lose it then",
        commands: [
          "modprobe mlx5_vfio_pci",
          `echo mlx5_vfio_pci > ${sys}/bus/pci/devices/${VF}/driver_override`,
          `echo ${VF} > ${sys}/bus/pci/devices/${VF}/driver/unbind`,
          `echo ${VF} > ${sys}/bus/pci/drivers_probe`,
        ],
      },
    ]);
  });

  test("that has none, where the VFIO driver is loaded, needs two commands", () => {
    system.file(`${system.roots.sys}/bus/pci/drivers/vfio-pci/bind`, "");
    system.pci(VF, { group: 1 });
    expect(obstacles()[0]).toMatchObject({
      message: "no driver has it",
      remedy: "bind it to vfio-pci",
      commands: [expect.stringMatching(/^echo vfio-pci > .*driver_override$/), expect.stringMatching(/drivers_probe$/)],
    });
  });

  test("on the platform bus goes to vfio-platform", () => {
    system.platform("9060000.ethernet", { driver: "xgbe", group: 5 });
    expect(obstacles("9060000.ethernet")[0].commands).toContain(
      `echo vfio-platform > ${system.roots.sys}/bus/platform/devices/9060000.ethernet/driver_override`,
    );
  });

  test("whose VFs are on is told that VFIO takes no such PF", () => {
    system.pci(VF, { driver: "igb", group: 1, vfs: 2 });
    expect(obstacles()[0]).toMatchObject({ code: "VFS_ARE_ON", remedy: "assign the VFs, or switch them off first" });
  });
});

test("each member that holds the group back is named with its driver", () => {
  system.pci(VF, { driver: "vfio-pci", group: 7, vfio: "vfio0" });
  system.pci("0000:3b:00.2", { driver: "snd_hda_intel", group: 7 });
  system.pci("0000:3b:00.3", { driver: "xhci_hcd", group: 7 });
  system.pci("0000:3b:00.4", { group: 7 });
  expect(obstacles().map(({ code, message }) => [code, message])).toEqual([
    ["GROUP_HELD_BACK", "0000:3b:00.2 shares IOMMU group 7 with it and is driven by snd_hda_intel"],
    ["GROUP_HELD_BACK", "0000:3b:00.3 shares IOMMU group 7 with it and is driven by xhci_hcd"],
  ]);
});

test("a device without an IOMMU is told so, and once", () => {
  system.pci(VF, { driver: "vfio-pci", vfio: "vfio0", cdev: false });
  expect(obstacles()).toMatchObject([{ code: "NO_IOMMU_GROUP", remedy: expect.stringContaining("intel_iommu=on") }]);
});

test("an mdev's group, which has no IOMMU, is no obstacle", () => {
  const uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  system.mdev(uuid, { parent: "mtty", type: "mtty-1", driver: "mtty", group: 9, vfio: "vfio1" });
  expect(obstacles(uuid)).toEqual([]);
});

describe("a device without a cdev", () => {
  test("has none made by a kernel that is too old, or that was built without", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0", cdev: false });
    expect(obstacles(VF, parseRelease("6.1.0"))[0].message).toMatch(/this is Linux 6\.1\.0, and they came with 6\.6$/);
    system.file(`${system.roots.boot}/config-7.2.13`, "CONFIG_VFIO=y\n");
    expect(obstacles()[0].message).toMatch(/built without CONFIG_VFIO_DEVICE_CDEV$/);
  });

  test("has one that this file system does not show", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
    rmSync(`${system.roots.dev}/vfio/devices/vfio0`);
    expect(obstacles()[0]).toMatchObject({ code: "NO_CDEV", remedy: expect.stringContaining("--device") });
  });
});

describe("a refusal of the kernel", () => {
  const refusal = (code: ErrnoName, syscall = "VFIO_DEVICE_BIND_IOMMUFD") =>
    explainRefusal(system.roots, device(), new UapiError(code, { syscall, attempted: "bind" }));

  function inUse(pid: number, command: string): void {
    system.file(`${system.roots.proc}/${pid}/comm`, `${command}\n`);
    system.link(`${system.roots.proc}/${pid}/fd/11`, `${system.roots.dev}/vfio/devices/vfio0`);
    system.link(`${system.roots.proc}/${pid}/fd/12`, "/dev/null");
  }

  test("of a device in use names the process that has it open", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
    inUse(4711, "qemu-system-x86");
    expect(refusal("EINVAL")).toMatchObject({
      code: "IN_USE",
      message: "it is in use, by qemu-system-x86 (process 4711) (VFIO_DEVICE_BIND_IOMMUFD: EINVAL)",
    });
    expect(refusal("EBUSY")).toMatchObject({ code: "IN_USE" });
  });

  test("of a device whose group is another's names who holds a member of it", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio9" });
    system.pci("0000:3b:00.2", { driver: "vfio-pci", group: 1, vfio: "vfio0" });
    inUse(12, "dpdk");
    expect(refusal("EPERM")).toMatchObject({
      code: "GROUP_IN_USE",
      message: expect.stringContaining("dpdk (process 12)"),
    });
  });

  test("that nobody's use explains tells what else it can mean", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
    expect(refusal("EPERM")).toMatchObject({
      code: "NOT_OWNED",
      commands: ["echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts"],
    });
    expect(refusal("ENODEV", "open")).toMatchObject({ code: "GONE" });
    expect(refusal("EACCES")).toMatchObject({ code: "TOKEN_NEEDED" });
    expect(refusal("ENOMEM")).toMatchObject({ code: "REFUSED" });
  });

  test("of a file that its mode would let us open points at the container", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
    expect(refusal("EPERM", "open")).toMatchObject({
      code: "OPEN_FORBIDDEN",
      remedy: expect.stringContaining("docker run --device"),
    });
  });

  test("does not take this process for another", () => {
    system.pci(VF, { driver: "vfio-pci", group: 1, vfio: "vfio0" });
    inUse(process.pid, "node");
    expect(refusal("EPERM").code).toBe("NOT_OWNED");
  });
});
