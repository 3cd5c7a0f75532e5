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
    system.file(`${system.roots.modules}/7.2.13/modules.dep`, "kernel/drivers/vfio/pci/mlx5/mlx5_vfio_pci.ko.zst:\n");
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
        warnings: [],
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
    expect(obstacles()).toMatchObject([
      {
        code: "VFS_ARE_ON",
        remedy: "assign the VFs, or switch them off",
        commands: [expect.stringContaining("echo 0")],
      },
      { code: "NOT_A_VFIO_DRIVER" },
    ]);
    system[Symbol.dispose]();
    system = new FakeSystem();
    // Nobody is there who could switch them off.
    system.pci(VF, { group: 1, vfs: 2 });
    expect(obstacles()).toMatchObject([{ code: "VFS_ARE_ON", commands: [] }]);
  });

  test("whose VFIO driver this kernel lacks is not told to load it", () => {
    system.file(`${system.roots.modules}/7.2.13/modules.dep`, "kernel/drivers/net/igb.ko:\n");
    system.pci(VF, { driver: "igb", group: 1 });
    expect(obstacles()).toMatchObject([
      {
        code: "NO_VFIO_DRIVER",
        message: expect.stringContaining("not among the modules of this kernel"),
        commands: [],
      },
    ]);
  });

  test("that can't be taken from it is not told to be taken", () => {
    system.pci(VF, { driver: "stubborn", group: 1, stuck: true });
    expect(obstacles()).toMatchObject([{ remedy: expect.stringContaining("at boot"), commands: [] }]);
  });

  test("whose name a shell would run is quoted", () => {
    system.platform("$(reboot)@40", { driver: "x", group: 5 });
    expect(obstacles("$(reboot)@40")[0].commands).toContain(
      `echo '$(reboot)@40' > ${system.roots.sys}/bus/platform/drivers_probe`,
    );
  });

  test("without a driver, of an mdev, is made anew under its UUID", () => {
    const uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    const path = system.mdev(uuid, { parent: "mtty", type: "mtty-1", group: 9 });
    expect(obstacles(uuid)[0].commands).toEqual([
      `echo 1 > ${system.roots.sys}/bus/mdev/devices/${uuid}/remove`,
      `echo ${uuid} > ${path.replace(uuid, "mdev_supported_types/mtty-1")}/create`,
    ]);
  });
});

describe("what the host does with a device is told before it loses it:", () => {
  const disk = () => {
    const { sys, proc } = system.roots;
    const nvme = `${system.pci(VF, { driver: "nvme", group: 1 })}/nvme/nvme0/nvme0n1`;
    system.file(`${nvme}/nvme0n1p2/dev`, "259:2\n");
    system.link(`${sys}/class/block/nvme0n1`, nvme);
    system.link(`${sys}/class/block/nvme0n1p2`, `${nvme}/nvme0n1p2`);
    return (mountinfo: string, swaps = "") => {
      system.file(`${proc}/self/mountinfo`, mountinfo);
      system.file(`${proc}/swaps`, `Filename Type Size Used Priority\n${swaps}`);
      return obstacles()[0].warnings;
    };
  };

  test("mounted file systems, by number or by name, also through LVM; swap", () => {
    const warnings = disk();
    expect(warnings("25 1 0:23 / /proc rw - proc proc rw\n")).toEqual([]);
    expect(
      warnings("30 1 259:2 / / rw shared:1 - ext4 /dev/root rw\n31 1 259:2 /h /my\\040home rw - ext4 /dev/root rw\n"),
    ).toEqual(["/, /my home are mounted from its nvme0n1p2"]);
    expect(warnings("30 1 0:40 / /data rw - btrfs /dev/nvme0n1p2 rw\n")).toEqual([
      "/data is mounted from its nvme0n1p2",
    ]);
    const { sys } = system.roots;
    system.file(`${sys}/devices/virtual/block/dm-0/dev`, "253:0\n");
    system.link(`${sys}/class/block/dm-0`, `${sys}/devices/virtual/block/dm-0`);
    system.link(`${sys}/class/block/nvme0n1p2/holders/dm-0`, `${sys}/devices/virtual/block/dm-0`);
    expect(warnings("30 1 253:0 / / rw - ext4 /dev/mapper/root rw\n", "/dev/dm-0 partition 1 0 -2\n")).toEqual([
      "/ is mounted from its dm-0",
      "swap is on its dm-0",
    ]);
  });

  test("the default route, also through a bond", () => {
    const { sys, proc } = system.roots;
    const nic = `${system.pci(VF, { driver: "igb", group: 1 })}/net/eth0`;
    system.file(`${nic}/ifindex`, "2\n");
    system.link(`${sys}/class/net/eth0`, nic);
    const header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";
    const route = (name: string, mask: string) => {
      system.file(`${proc}/net/route`, `${header}${name}\t00000000\t0100000A\t0003\t0\t0\t0\t${mask}\t0\n`);
      return obstacles()[0].warnings;
    };
    expect(route("eth0", "000000FF")).toEqual([]);
    expect(route("eth0", "00000000")).toEqual(["the default route goes through its eth0"]);
    expect(route("bond0", "00000000")).toEqual([]);
    system.link(`${nic}/upper_bond0`, "../../bond0");
    expect(route("bond0", "00000000")).toEqual(["the default route goes through its eth0"]);
  });

  test("what lies behind it, and its mdevs", () => {
    const id = "0000:5d:05.5";
    system.pci(id, { driver: "vmd", group: 3, class: "0x010400" });
    system.pci("10000:e1:00.0", { driver: "nvme", group: 3, below: id });
    expect(obstacles(id)[0].warnings).toEqual(["a device vanishes: 10000:e1:00.0"]);
  });
});

describe("a member of its group without which the device would not be there is no neighbour to unbind:", () => {
  test("a VMD", () => {
    system.pci("0000:5d:05.5", { driver: "vmd", group: 3, class: "0x010400" });
    system.pci(VF, { driver: "vfio-pci", group: 3, vfio: "vfio0", below: "0000:5d:05.5" });
    expect(obstacles()).toMatchObject([
      {
        code: "GROUP_HELD_BACK",
        message: `0000:5d:05.5 shares IOMMU group 3 with it and is driven by vmd, without which ${VF} would not be there`,
        remedy: expect.stringMatching(/^assign 0000:5d:05\.5 itself/),
        commands: [],
      },
    ]);
  });

  test("a bridge, also one above its PF", () => {
    system.pci("0000:00:1c.0", { driver: "shpchp", group: 3, class: "0x060400" });
    system.pci("0000:3b:00.0", { driver: "pci-stub", group: 4, below: "0000:00:1c.0" });
    system.pci(VF, { driver: "vfio-pci", group: 3, vfio: "vfio0", below: "0000:00:1c.0", pf: "0000:3b:00.0" });
    expect(obstacles()).toMatchObject([{ remedy: `put ${VF} into a slot whose group it has alone`, commands: [] }]);
  });

  test("its PF", () => {
    system.pci("0000:3b:00.0", { driver: "igb", group: 3, vfs: 1 });
    system.pci(VF, { driver: "vfio-pci", group: 3, vfio: "vfio0", pf: "0000:3b:00.0" });
    expect(obstacles()).toMatchObject([
      { remedy: expect.stringMatching(/^assign the PF 0000:3b:00\.0/), commands: [] },
    ]);
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
    expect(refusal("EPERM")).toMatchObject({ code: "NOT_OWNED", commands: [] });
    const parameter = `${system.roots.sys}/module/iommufd/parameters/allow_unsafe_interrupts`;
    system.file(parameter, "N\n");
    expect(refusal("EPERM")).toMatchObject({
      commands: [`echo 1 > ${parameter}`],
      warnings: ["a guest can then raise any interrupt of the host"],
    });
    system.file(parameter, "Y\n");
    expect(refusal("EPERM")).toMatchObject({ code: "NOT_OWNED", commands: [] });
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
