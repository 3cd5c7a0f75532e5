import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { planHost } from "../../../src/cli/sites/linux/plan.js";
import { probeHost } from "../../../src/cli/sites/linux/probe.js";
import { LinuxHost } from "../../../src/linux/host.js";
import type { LinuxDevice } from "../../../src/linux/sysfs/device.js";
import { DEFAULT_POLICY } from "../../../src/tracking/choice.js";
import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { dirtmap } from "../../support/program.js";
import { IOMMU } from "../support/machine.js";
import { bindToVfioPci } from "../support/vfio-devices.js";

/* What probe and plan say of PCI devices behind an IOMMU of QEMU's, which has no dirty bits. */

const { edu, pair0, pair1, nvme } = PCI_DEVICES;

async function find(host: LinuxHost, id: string): Promise<LinuxDevice> {
  const device = (await host.devices()).find((candidate) => candidate.id === id);
  if (device === undefined) throw new Error(`the machine has no ${id}`);
  return device;
}

describe("devices that no VFIO driver has", () => {
  test("are listed with driver, group and IOMMU", async () => {
    await using host = new LinuxHost();
    const ids = (await host.devices()).map(({ id }) => id);
    expect(ids).toEqual(expect.arrayContaining(Object.values(PCI_DEVICES)));
    expect(await find(host, edu)).toMatchObject({
      driver: null,
      numaNode: null,
      iommu: { type: IOMMU.sysfs, dirtyTracking: false },
      pci: { vendor: 0x1234, device: 0x11e8 },
      group: { members: [{ id: edu }], noIommu: false },
      vfio: null,
    });
    expect(await find(host, nvme)).toMatchObject({ driver: "nvme" });
    expect((await find(host, pair0)).group?.members).toMatchObject([{ id: pair0 }, { id: pair1 }]);
  });

  test("can be bound with just the commands that are given", async () => {
    await using host = new LinuxHost();
    const [{ message, commands }] = host.obstacles(await find(host, nvme));
    expect(message).toBe("its driver is nvme, no VFIO driver");
    execFileSync("sh", ["-ec", commands.join("\n")], { timeout: 60_000 });
    // Given back to nvme at the end.
    await using _bound = bindToVfioPci(nvme);
    const bound = await find(host, nvme);
    expect(bound).toMatchObject({ driver: "vfio-pci", vfio: { hasCdev: true } });
    expect(host.obstacles(bound)).toEqual([]);
  });

  test("are planned by what the IOMMU's registers show, and marked as a guess", async () => {
    await using host = new LinuxHost();
    const { devices, qemu } = await planHost(host, DEFAULT_POLICY, { ids: [edu] });
    expect(devices).toMatchObject([
      {
        basis: "guessed",
        why: "no driver has it",
        choice: { tracker: "everything", reason: expect.stringContaining("the registers of its IOMMU") },
      },
    ]);
    expect(qemu.arguments.map(({ value }) => value)).toContainEqual(expect.stringContaining(`host=${edu}`));
  });
});

describe("a device on vfio-pci", () => {
  test("is asked: what its IOMMU can do, and that it has neither migration nor a log; and is left as it was", async () => {
    await using bound = bindToVfioPci(edu);
    await using host = new LinuxHost();
    const { devices } = await probeHost(host, { ids: [edu] });
    expect(devices).toMatchObject([
      {
        device: { id: edu, driver: "vfio-pci", vfio: { cdev: bound.cdev } },
        missing: [],
        capabilities: {
          flags: { tracksInternally: false, tracksThroughContainer: false },
          migration: null,
          iommu: { type: IOMMU.type, dirtyTracking: false },
          trackers: { iommu: { available: false }, device: { available: false } },
        },
      },
    ]);
    expect(devices[0].capabilities?.iommu?.pageSizes[0]).toBe(IOMMU.smallestPage);
    expect((await probeHost(host, { ids: [edu] })).devices).toEqual(devices);
  });

  test("is shown with every tracker that it lacks, and why", async () => {
    await using bound = bindToVfioPci(edu);
    // As lspci writes it.
    const { code, stdout } = await dirtmap(["probe", "--host", "linux", "--device", edu.replace(/^0000:/, "")]);
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`^${edu} +other 1234:11e8 +vfio-pci .*${IOMMU.sysfs} .*${bound.cdev}$`, "m"));
    expect(stdout).toContain(`${edu}: vfio-pci, behind ${IOMMU.type}`);
    expect(stdout).toMatch(/^ +iommu +no +its IOMMU( \(\S+\))? has no dirty tracking$/m);
    expect(stdout).toMatch(/^ +device +no +it has no DMA logging of its own$/m);
    expect(stdout).toMatch(/^ +pinned +no +it is no mdev/m);
  });

  test("whose group another process holds says by whom", async () => {
    await using _pair0 = bindToVfioPci(pair0);
    await using _pair1 = bindToVfioPci(pair1);
    await using host = new LinuxHost();
    const holder = await host.openDevice(pair0);
    await holder.bind(await host.openIommufd());
    const { stdout } = await dirtmap(["probe", "--host", "linux", "--device", pair0, pair1, "--json"]);
    expect(JSON.parse(stdout).devices.map(({ missing }: { missing: unknown }) => missing)).toMatchObject([
      [{ code: "IN_USE", message: expect.stringContaining(`(process ${process.pid})`) }],
      [{ code: "GROUP_IN_USE", message: expect.stringContaining(`(process ${process.pid})`) }],
    ]);
  });
});
