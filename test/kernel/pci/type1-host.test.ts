import { spawnSync } from "node:child_process";
import { chmodSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import type { VfioDevice } from "../../../src/host/host.js";
import { createPassthroughMachine } from "../../../src/host/passthrough-machine.js";
import { LinuxIommufd } from "../../../src/linux/linux-iommufd.js";
import { LinuxType1Container } from "../../../src/linux/type1/container.js";
import { VfioGroup } from "../../../src/linux/type1/group.js";
import { Type1Host, type Type1HostOptions } from "../../../src/linux/type1/host.js";
import { LinuxVfioDevice } from "../../../src/linux/vfio/device.js";
import { MiB, U64_MAX } from "../../../src/memory/address.js";
import { createArena } from "../../../src/memory/arena.js";
import { holdsOf } from "../../../src/memory/holds.js";
import { DEFAULT_POLICY } from "../../../src/tracking/choice.js";
import { openDesign } from "../../../src/tracking/designs.js";
import { chooseTrackers } from "../../../src/tracking/policy.js";
import { probeMachine } from "../../../src/tracking/probe.js";
import type { UapiError } from "../../../src/uapi/errno.js";
import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { openDescriptors } from "../support/descriptors.js";
import { type1Device } from "../support/type1-bench.js";
import { bindToVfioPci, createMtty, type TestDevice } from "../support/vfio-devices.js";

/* Devices opened through their groups, what goes wrong with them, and what is left open then: nothing. */

/** The refusal of a call that must be refused. */
async function refusal(call: Promise<unknown>): Promise<UapiError> {
  try {
    await call;
  } catch (error) {
    return error as UapiError;
  }
  throw new Error("it was not refused");
}

/** Opens devices through their groups. */
async function openLegacy(devices: readonly TestDevice[], options: Type1HostOptions = {}) {
  const host = await Type1Host.open(options);
  try {
    const opened: VfioDevice[] = [];
    for (const { name } of devices) opened.push(await host.openDevice(name));
    return { host, container: host.container, opened, [Symbol.asyncDispose]: () => host[Symbol.asyncDispose]() };
  } catch (error) {
    await host[Symbol.asyncDispose]();
    throw error;
  }
}

const PAGE = 4096;
const RW = { readable: true, writeable: true };

let before: string[];
beforeEach(() => {
  before = openDescriptors();
});
afterEach(() => {
  expect(openDescriptors()).toEqual(before);
});

describe("a VFIO group", () => {
  it("is not viable while a driver of the kernel has another of its devices, which the error names", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.besideNvme);
    {
      await using group = await VfioGroup.open(type1Device(device, false).group);
      expect(group.status()).toEqual({ viable: false, containerSet: false });
    }
    await using container = await LinuxType1Container.open();
    const error = await refusal(container.addDevice(type1Device(device, false)));
    expect(error).toMatchObject({ code: "EPERM", syscall: "VFIO_GROUP_SET_CONTAINER" });
    expect(error.remedy).toContain(`unbind ${PCI_DEVICES.nvme} (nvme)`);
    expect(openDescriptors().filter((name) => name !== "/dev/vfio/vfio")).toEqual(before);
  });

  it("is viable once all of its devices are on vfio-pci, and opened once for all of them", async () => {
    await using first = bindToVfioPci(PCI_DEVICES.pair0);
    await using second = bindToVfioPci(PCI_DEVICES.pair1);
    await using legacy = await openLegacy([first, second]);
    expect(legacy.opened.map(({ id }) => id)).toEqual([PCI_DEVICES.pair0, PCI_DEVICES.pair1]);
    const group = type1Device(first, false).group.id;
    expect(openDescriptors().filter((name) => name === `/dev/vfio/${group}`)).toHaveLength(1);
  });

  it("that is open already is EBUSY, as is a device that is open", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using first = await openLegacy([device]);
    const error = await refusal(openLegacy([device]));
    expect(error).toMatchObject({ code: "EBUSY", syscall: "open" });
    expect(error.remedy).toContain("opened once");
    expect(await refusal(first.container.addDevice(type1Device(device, false)))).toMatchObject({ code: "EBUSY" });
  });

  it("gives no device without a container, or with one that has no IOMMU yet", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using group = await VfioGroup.open(type1Device(device, false).group);
    expect(group.status()).toEqual({ viable: true, containerSet: false });
    const open = async () => group.openDevice(device.name);
    expect(await refusal(open())).toMatchObject({ code: "EINVAL", syscall: "VFIO_GROUP_GET_DEVICE_FD" });
    expect(await refusal(group.unsetContainer())).toMatchObject({ code: "EINVAL" });
  });

  it("has no device of another name: ENODEV, and the group is out of the container again", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using container = await LinuxType1Container.open();
    const stranger = { ...type1Device(device, false), id: PCI_DEVICES.igb };
    expect(await refusal(container.addDevice(stranger))).toMatchObject({ code: "ENODEV" });
    await container.addDevice(type1Device(device, false));
  });

  it("that no VFIO driver has is ENOENT, with what to do about it", async () => {
    await using container = await LinuxType1Container.open();
    const error = await refusal(
      container.addDevice({ id: "0000:ff:00.0", group: { id: 9999, members: [] }, mdev: false }),
    );
    expect(error).toMatchObject({ code: "ENOENT", syscall: "open" });
    expect(error.remedy).toContain("vfio-pci");
  });
});

describe("group and character device of one device", () => {
  it("exclude each other: the group is EBUSY while the device is bound to an iommufd", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using iommufd = await LinuxIommufd.open();
    await using open = await LinuxVfioDevice.open({ id: device.name, model: "vfio-pci", cdev: device.cdev });
    await open.bind(iommufd);
    expect(await refusal(openLegacy([device]))).toMatchObject({ code: "EBUSY", syscall: "open" });
  });

  it("exclude each other: binding is EBUSY while the group is open", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using legacy = await openLegacy([device]);
    await using iommufd = await LinuxIommufd.open();
    {
      await using open = await LinuxVfioDevice.open({ id: device.name, model: "vfio-pci", cdev: device.cdev });
      expect(await refusal(open.bind(iommufd))).toMatchObject({ code: "EBUSY" });
    }
    const [vfio] = legacy.opened;
    expect(await refusal(vfio.bind(iommufd))).toMatchObject({ code: "EINVAL" });
    expect(await refusal(vfio.attach(2))).toMatchObject({ code: "ENOTTY" });
    const own = await legacy.host.openIommufd();
    await vfio.bind(own);
    expect(await refusal(vfio.bind(own))).toMatchObject({ code: "EINVAL" });
    expect(await vfio.attach(await own.allocIoas())).toBe(1);
  });
});

describe("a device that was opened through its group", () => {
  it("is used as any other: regions, reset, features", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using legacy = await openLegacy([device]);
    const edu = legacy.opened[0] as LinuxVfioDevice;
    expect(edu.regions.map(({ name }) => name)).toContain("bar0");
    // edu's identification register: 0xRRrr00ed (docs/specs/edu.rst of QEMU).
    expect((await edu.regionRead(0, 0, 4))[0]).toBe(0xed);
    expect(await edu.trackingFlags()).toEqual({ tracksInternally: false, tracksThroughContainer: false });
    expect(await edu.supports("MIGRATION")).toBe(false);
  });

  it("migrates, where its driver can", async () => {
    await using device = createMtty();
    await using legacy = await openLegacy([device]);
    const [vfio] = legacy.opened;
    expect((await vfio.migration()).stopCopy).toBe(true);
    const stream = await vfio.setState("STOP_COPY");
    expect(stream?.direction).toBe("saving");
    expect((await vfio.dataSize()) > 0).toBe(true);
  });
});

describe("the design 'type1' on Linux", () => {
  it("reads the container that a machine's devices are in: everything, with a device that pins nothing", async () => {
    await using mtty = createMtty();
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using host = await Type1Host.open();
    await using machine = await createPassthroughMachine({
      host,
      designs: host,
      devices: [
        { id: "mtty0", hostId: mtty.name },
        { id: "edu0", hostId: device.name },
      ],
      memory: 4 * MiB,
    });
    const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
    {
      await using tracking = await openDesign("type1", machine, choices);
      await tracking.start();
      for (let round = 0; round < 2; round++) {
        const { dirty } = await tracking.read({ quiesced: false });
        const writeable = machine.memory.regions.filter((region) => region.writeable);
        expect(dirty.bytes).toBe(writeable.reduce((sum, { pages }) => sum + pages * PAGE, 0));
      }
    }
    for (const design of ["aggregated", "iterating"] as const) {
      expect(await refusal(openDesign(design, machine, choices))).toMatchObject({ code: "EOPNOTSUPP" });
    }
    const members = { design: "type1", members: [], mapped: [] } as const;
    expect(await refusal(host.openContainer(members))).toMatchObject({ code: "EINVAL" });
  });

  it("has nothing to report of an mdev that pins nothing", async () => {
    await using mtty = createMtty();
    await using host = await Type1Host.open();
    const devices = [{ id: "mtty0", hostId: mtty.name }];
    await using machine = await createPassthroughMachine({ host, designs: host, devices, memory: 4 * MiB });
    const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
    await using tracking = await openDesign("type1", machine, choices);
    await tracking.start();
    expect((await tracking.read({ quiesced: false })).dirty.bytes).toBe(0);
  });
});

describe("a container in the place of an iommufd", () => {
  it("has one IOAS, whose addresses leave out the MSI window, and no page tables of its own", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using legacy = await openLegacy([device]);
    const iommufd = await legacy.host.openIommufd();
    const ioas = await iommufd.allocIoas();
    expect(await refusal(iommufd.allocIoas())).toMatchObject({ code: "EOPNOTSUPP" });
    const { ranges, alignment } = await iommufd.iovaRanges(ioas);
    expect(alignment).toBe(PAGE);
    expect(ranges[0]).toEqual({ start: 0n, last: 0xfedf_ffffn });
    const span = { arena: createArena(1 * MiB), offset: 0, length: PAGE };
    expect(await iommufd.map(ioas, span, { iova: 0x1000n, ...RW })).toBe(0x1000n);
    expect(await refusal(iommufd.map(ioas, span, RW))).toMatchObject({ code: "EOPNOTSUPP" });
    expect(await refusal(iommufd.map(7, span, { iova: 0n, ...RW }))).toMatchObject({ code: "ENOENT" });
    const msi = await refusal(iommufd.map(ioas, span, { iova: 0xfee0_0000n, ...RW }));
    expect(msi).toMatchObject({ code: "EINVAL", syscall: "VFIO_IOMMU_MAP_DMA" });
    expect(msi.remedy).toContain("within 0x0 to 0xfedfffff");
    expect((await iommufd.hwInfo(2)).dirtyTracking).toBe(false);
    const hwpt = iommufd.allocHwpt({ device: 2, ioas, dirtyTracking: false });
    expect(await refusal(hwpt)).toMatchObject({ code: "EOPNOTSUPP", syscall: "IOMMU_HWPT_ALLOC" });
    expect(await iommufd.unmap(ioas, 0x1000n, 0x1000n)).toBe(0x1000n);
    expect(await refusal(iommufd.unmap(ioas, 0x1000n, 0x1000n))).toMatchObject({ code: "ENOENT" });
    await iommufd.map(ioas, span, { iova: 0x1000n, ...RW });
    expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(0x1000n);
  });
});

describe("memory in a container", () => {
  it("is held while it is mapped, and let go of with it, with the device, and with the container", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    const arena = createArena(1 * MiB);
    const holds = holdsOf(arena);
    const span = { arena, offset: 0, length: PAGE };
    {
      await using legacy = await openLegacy([device]);
      const { container } = legacy;
      await container.mapDma({ iova: 0n, span, ...RW });
      await container.mapDma({ iova: 0x1000n, span, ...RW });
      await refusal(container.mapDma({ iova: 0x1000n, span, ...RW }));
      expect(holds.count).toBe(2);
      await container.unmapDma({ iova: 0n, length: 0x1000n });
      expect(holds.count).toBe(1);
      await legacy.opened[0][Symbol.asyncDispose]();
      expect(holds.count).toBe(0);
      await legacy.host.openDevice(device.name);
      await container.mapDma({ iova: 0n, span, ...RW });
      expect(holds.count).toBe(1);
    }
    expect(holds.count).toBe(0);
  });

  it("above the locked-memory limit is ENOMEM, with the limit and what to do about it", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    const group = type1Device(device, false).group.id;
    chmodSync(`/dev/vfio/${group}`, 0o666);
    const script = new URL("../support/locked-memory-child.js", import.meta.url).pathname;
    // The limit is this user's: root may lock what it likes (CAP_IPC_LOCK).
    const { stdout, stderr, status } = spawnSync(
      "sh",
      ["-c", `ulimit -l 64; exec "${process.execPath}" "${script}" ${device.name}`],
      { uid: 65534, gid: 65534, encoding: "utf8", timeout: 110_000 },
    );
    expect([status, stderr]).toEqual([0, ""]);
    const { refused, fitting, before, after } = JSON.parse(stdout) as Record<string, unknown>;
    expect(refused).toMatchObject({ code: "ENOMEM", syscall: "VFIO_IOMMU_MAP_DMA" });
    expect((refused as UapiError).remedy).toMatch(/RLIMIT_MEMLOCK is 65536 bytes: raise it/);
    expect(fitting).toBe("mapped");
    expect(after).toEqual(before);
  });
});

describe("iommufd in the container's place", () => {
  it("maps and unmaps, and says why it has no dirty pages", async () => {
    await using device = bindToVfioPci(PCI_DEVICES.edu);
    await using legacy = await openLegacy([device], { path: "/dev/iommu" });
    const { container } = legacy;
    const info = container.info();
    expect(info.dirtyPages).toBeNull();
    expect(info.iovaRanges).not.toBeNull();
    const arena = createArena(1 * MiB);
    await container.mapDma({ iova: 0n, span: { arena, offset: 0, length: 4 * PAGE }, ...RW });
    const start = await refusal(container.dirtyPagesStart());
    expect(start).toMatchObject({ code: "ENOTTY", syscall: "VFIO_IOMMU_DIRTY_PAGES" });
    expect(start.remedy).toContain("iommufd stands in for the container");
    const into = new DirtyBitmap({ iova: 0n, length: 0x4000n, granule: PAGE });
    const get = await refusal(container.dirtyPagesGetBitmap({ iova: 0n, length: 0x4000n, into }));
    expect(get).toMatchObject({ code: "ENOTTY", remedy: start.remedy });
    const unmap = await refusal(container.unmapDma({ iova: 0n, length: 0x4000n, dirty: into }));
    expect(unmap).toMatchObject({ code: "EINVAL", syscall: "VFIO_IOMMU_UNMAP_DMA", remedy: start.remedy });
    expect(await container.unmapDma({ iova: 0n, length: 0x4000n })).toBe(0x4000n);
  });
});
