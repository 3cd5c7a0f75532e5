import { rmSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../../../linux/fake-system.test.helper.js";
import { hostText } from "../../text/linux-probe-text.js";
import { fakeHost } from "./fake-host.test.helper.js";
import { probeHost } from "./probe.js";

const VF = "0000:3b:00.1";
const NVME = "0000:01:00.0";
const NIC = "0000:02:00.0";
const MDEV = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

let system = new FakeSystem();
beforeEach(() => {
  system.file(`${system.roots.dev}/iommu`, "");
  system.file(`${system.roots.proc}/self/status`, "CapEff:\t000001ffffffffff\n");
  system.iommu("dmar0", { "intel-iommu/ecap": "280000000000\n" });
  system.pci(VF, {
    driver: "mlx5_vfio_pci",
    group: 42,
    iommu: "dmar0",
    numaNode: "1",
    vfio: "vfio3",
    pf: "0000:3b:00.0",
  });
});
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

describe("a device that can be opened", () => {
  test("is bound, asked, and left unbound and closed, without memory being attached", async () => {
    const { host, log } = fakeHost(system, { [VF]: { log: { pageSizes: [4096] } } });
    const { devices } = await probeHost(host);
    expect(devices).toMatchObject([
      {
        device: { id: VF },
        missing: [],
        capabilities: {
          id: VF,
          model: "mlx5_vfio_pci",
          mdev: false,
          migration: { stopCopy: true, p2p: true },
          trackers: { iommu: { available: true }, device: { available: true }, pinned: { available: false } },
        },
      },
    ]);
    expect(log).toEqual(["open iommufd", `open ${VF}`, `close ${VF}`, "close iommufd"]);
  });

  test("shows every tracker that it has or lacks with the reason, its flags, and what sysfs tells", async () => {
    const { host } = fakeHost(system, { [VF]: { migration: null, iommuTracks: false } });
    const text = hostText(await probeHost(host));
    expect(text).toMatch(
      /^0000:3b:00\.1 +ethernet VF 8086:1521 +mlx5_vfio_pci +42 +intel-iommu dmar0 +1 +\S+\/vfio3$/m,
    );
    expect(text).toContain("migration: can't migrate");
    expect(text).toContain("internal dirty track supported: no");
    expect(text).toMatch(/^ +iommu +no +its IOMMU \(amd\) has no dirty tracking$/m);
    expect(text).toMatch(/^ +pinned +no +it is no mdev/m);
  });
});

describe("a device that can't be opened still shows what sysfs tells, and what is missing", () => {
  test("in use: by whom, and everything else goes on", async () => {
    system.mdev(MDEV, { parent: "mtty", type: "mtty-1", driver: "mtty", group: 9, vfio: "vfio4" });
    system.file(`${system.roots.proc}/4711/comm`, "qemu-system-x86\n");
    system.link(`${system.roots.proc}/4711/fd/30`, `${system.roots.dev}/vfio/devices/vfio3`);
    const { host, log } = fakeHost(system, { [VF]: { refusesBind: "EINVAL" }, [MDEV]: { mdev: true, log: {} } });
    const probed = await probeHost(host);
    expect(probed.devices).toMatchObject([
      { device: { id: VF }, capabilities: null, missing: [{ code: "IN_USE" }] },
      { device: { id: MDEV }, capabilities: { mdev: true, iommu: null }, missing: [] },
    ]);
    expect(log.filter((line) => line.startsWith("close"))).toHaveLength(4);
    expect(hostText(probed)).toContain("missing: it is in use, by qemu-system-x86 (process 4711)");
  });

  test("held back by its group: with each of its members, rather than with the errno that follows", async () => {
    system.pci(NIC, { driver: "igb", group: 42 });
    const { host } = fakeHost(system, { [VF]: { refusesBind: "EPERM" } });
    const probed = await probeHost(host, { ids: [VF] });
    expect(probed.devices.map(({ missing }) => missing.map(({ code }) => code))).toEqual([["GROUP_HELD_BACK"]]);
    expect(hostText(probed)).toContain(`IOMMU group 42 has also: ${NIC} (igb)`);
  });

  test("on another driver: with the commands, once for all that need the same", async () => {
    system.pci(NVME, { driver: "nvme", group: 3, class: "0x010802" });
    system.pci(NIC, { driver: "igb", group: 4 });
    const { host, log } = fakeHost(system, { [VF]: {} });
    const text = hostText(await probeHost(host));
    expect(log.filter((line) => line.startsWith("open 0000"))).toEqual([`open ${VF}`]);
    expect(text).toContain(`could be bound to vfio-pci: ${NVME} (nvme), ${NIC} (igb)`);
    expect(text).toContain(`    echo ${NVME} > ${system.roots.sys}/bus/pci/drivers_probe`);
    expect(text).not.toContain(`echo ${NIC} >`);
    const one = hostText(await probeHost(host, { ids: [NIC] }));
    expect(one).toContain("missing: its driver is igb, no VFIO driver");
    expect(one).toContain(`      echo ${NIC} > ${system.roots.sys}/bus/pci/drivers_probe`);
  });

  test("without /dev/iommu: with one line that says so, and no device is opened", async () => {
    const { host, log } = fakeHost(system, {});
    rmSync(`${system.roots.dev}/iommu`);
    const text = hostText(await probeHost(host));
    expect(log).toEqual([]);
    expect(text.match(/there is no \S*\/dev\/iommu/g)).toHaveLength(1);
    expect(text).toMatch(/^0000:3b:00\.1 +ethernet VF/m);
    expect(text).toContain("not asked, without /dev/iommu");
  });
});

test("a cancelled probe opens no further device", async () => {
  const { host, log } = fakeHost(system, { [VF]: {} });
  await expect(probeHost(host, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/);
  expect(log).toEqual([]);
});

test("a machine without devices says so in one line; types of mdev that it could make are listed", async () => {
  system[Symbol.dispose]();
  system = new FakeSystem();
  const types = `${system.roots.sys}/class/mdev_bus/mtty/mdev_supported_types/mtty-1`;
  const { host } = fakeHost(system, {});
  expect(hostText(await probeHost(host)).split("\n")).toContain("no device of this machine is assigned, or could be");
  system.file(`${types}/name`, "Single port serial\n");
  system.file(`${types}/available_instances`, "24\n");
  const text = hostText(await probeHost(host));
  expect(text).toMatch(/^mtty-1 +mtty +24 +Single port serial$/m);
  expect(text).toContain(`uuidgen > ${types}/create`);
});
