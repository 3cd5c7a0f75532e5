import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { createPassthroughMachine } from "../../../src/host/passthrough-machine.js";
import { deviceShapeSchema } from "../../../src/host/shape-schema.js";
import { LinuxHost } from "../../../src/linux/host.js";
import { LinuxIommufd } from "../../../src/linux/linux-iommufd.js";
import type { LinuxVfioDevice } from "../../../src/linux/vfio/device.js";
import { KiB, MiB, PAGE_SIZE } from "../../../src/memory/address.js";
import { createArena } from "../../../src/memory/arena.js";
import { createGuestMemory } from "../../../src/memory/guest-memory.js";
import { VFIO_PCI_IRQ_INDEX, VFIO_PCI_REGION_INDEX } from "../../../src/uapi/vfio.js";
import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { vfioConformance } from "../../conformance/vfio.js";
import { EDU_ID, Edu } from "../support/edu.js";
import { IOMMU } from "../support/machine.js";
import { openLinux, openLinuxBench } from "../support/vfio-bench.js";
import { bindToVfioPci, type TestDevice } from "../support/vfio-devices.js";

const NO_STATE = async (): Promise<never> => {
  throw new Error("it can't migrate: it has no state to mark");
};

/** Where tests map memory: below 256 MiB, since edu's addresses have 28 bits. */
const IOVA = BigInt(16 * MiB);

const edu = bindToVfioPci(PCI_DEVICES.edu);
const pair = bindToVfioPci(PCI_DEVICES.pair0);
const igb = bindToVfioPci(PCI_DEVICES.igb);
afterAll(async () => {
  for (const device of [edu, pair, igb]) await device[Symbol.asyncDispose]();
});

const fixture = {
  mdev: false,
  migration: null,
  dmaLogging: false,
  mark: NO_STATE,
  isMarked: NO_STATE,
  failToStop: null,
  afterBadState: "ERROR",
  dataSizeIsExact: false,
} as const;
vfioConformance("vfio-pci on edu", {
  ...fixture,
  open: () => openLinuxBench(edu, pair, "vfio-pci"),
  resets: false,
  // One of them is the first of two functions, which its configuration space says.
  twins: false,
});
vfioConformance("vfio-pci on igb", {
  ...fixture,
  open: () => openLinuxBench(igb, edu, "vfio-pci"),
  resets: true,
  twins: false,
});

describe(`vfio-pci behind ${IOMMU.sysfs}`, () => {
  const arena = createArena(64 * KiB);
  let iommufd: LinuxIommufd;
  let device: LinuxVfioDevice;
  let deviceId: number;
  let ioas: number;
  beforeEach(async () => {
    arena.u8.fill(0);
    iommufd = LinuxIommufd.open();
    device = await openLinux(edu, "vfio-pci");
    deviceId = await device.bind(iommufd);
    ioas = await iommufd.allocIoas();
    const flags = { iova: IOVA, readable: true, writeable: true };
    await iommufd.map(ioas, { arena, offset: 0, length: 64 * KiB }, flags);
  });
  afterEach(async () => {
    await device[Symbol.asyncDispose]();
    await iommufd[Symbol.asyncDispose]();
  });

  test("it has the regions and interrupts of a PCI function", async () => {
    expect(device.regions.find(({ name }) => name === "bar0")).toMatchObject({
      index: VFIO_PCI_REGION_INDEX.BAR0,
      bytes: MiB,
      readable: true,
      writeable: true,
    });
    expect(device.regions.find(({ name }) => name === "config")).toMatchObject({ readable: true });
    expect(device.irqs.map(({ index }) => index)).toContain(VFIO_PCI_IRQ_INDEX.REQ);
  });

  test("its shape is what a guest can tell it by", async () => {
    const shape = await device.shape();
    expect(shape).toMatchObject({ model: "vfio-pci", stateVersion: null, facts: {} });
    // QEMU's vendor and edu's device id.
    expect(shape.config).toMatch(/^3412e811/);
    expect(shape.regions).toContainEqual({ index: 0, name: "bar0", bytes: MiB, readable: true, writeable: true });
    expect(shape.irqs.map(({ name }) => name)).toEqual(["intx", "msi"]);
    expect(deviceShapeSchema.parse(shape)).toEqual(shape);
  });

  test("its shape is the same whatever its guest has set", async () => {
    const before = await device.shape();
    await device.attach(ioas);
    await new Edu(device).enable();
    expect(await device.shape()).toEqual(before);
  });

  test("its registers are reached through the device", async () => {
    const registers = new Edu(device);
    await registers.enable();
    expect((await registers.identification()) & 0xff).toBe(EDU_ID);
    expect(await registers.invert(0x1234_5678)).toBe(~0x1234_5678 >>> 0);
    await expect(device.regionRead(VFIO_PCI_REGION_INDEX.BAR0, MiB - 4, 8)).rejects.toMatchObject({ code: "EINVAL" });
  });

  test("its DMA reaches what is mapped", async () => {
    await device.attach(ioas);
    const registers = new Edu(device);
    await registers.enable();
    const pattern = Uint8Array.from({ length: PAGE_SIZE }, (_, i) => (i * 7) & 0xff);
    arena.u8.set(pattern, 0);
    await registers.copy(IOVA, IOVA + BigInt(3 * PAGE_SIZE), PAGE_SIZE);
    expect(arena.u8.slice(3 * PAGE_SIZE, 4 * PAGE_SIZE)).toEqual(pattern);
    expect(arena.u8.slice(4 * PAGE_SIZE).every((byte) => byte === 0)).toBe(true);
  });

  test("once it is detached its DMA reaches nothing", async () => {
    await device.attach(ioas);
    const registers = new Edu(device);
    await registers.enable();
    arena.u8.fill(0xaa, 0, PAGE_SIZE);
    await device.detach();
    await registers.copy(IOVA, IOVA + BigInt(PAGE_SIZE), PAGE_SIZE);
    expect(arena.u8.slice(PAGE_SIZE, 2 * PAGE_SIZE).every((byte) => byte === 0)).toBe(true);
  });

  test("its IOMMU says what it is, and that it has no dirty tracking", async () => {
    expect(await iommufd.hwInfo(deviceId)).toMatchObject({ type: IOMMU.hwInfoType, dirtyTracking: false });
  });

  test("it attaches to an HWPT without dirty tracking; one with it is refused with EOPNOTSUPP", async () => {
    const hwpt = await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: false });
    expect(await device.attach(hwpt)).toBe(hwpt);
    await expect(iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: true })).rejects.toMatchObject({
      code: "EOPNOTSUPP",
    });
  });

  test("a second process's worth of the same device is refused with EINVAL at bind", async () => {
    const second = await openLinux(edu, "vfio-pci");
    await expect(second.bind(iommufd)).rejects.toMatchObject({
      code: "EINVAL",
      remedy: expect.stringContaining("another process"),
    });
    await second[Symbol.asyncDispose]();
  });
});

describe(`a device unplugged in the middle, behind ${IOMMU.sysfs}`, () => {
  /** Writes to the driver's `unbind`, which blocks until the device is released. */
  async function unbind(device: TestDevice): Promise<() => Promise<void>> {
    const done = writeFile(join(device.sysfs, "driver/unbind"), device.name);
    return async () => {
      await done;
      bindToVfioPci(device.name);
    };
  }

  test("a device that is unbound asks to be released, refuses what comes then with ENODEV, and its removal ends with it", async () => {
    const iommufd = LinuxIommufd.open();
    const device = await openLinux(edu, "vfio-pci");
    await device.bind(iommufd);
    await device.attach(await iommufd.allocIoas());
    const asked = new Promise((resolve) => device.released.addEventListener("abort", resolve));
    const restore = await unbind(edu);
    await asked;
    await expect(device.attach(1)).rejects.toMatchObject({
      code: "ENODEV",
      remedy: expect.stringContaining("close"),
    });
    await device[Symbol.asyncDispose]();
    await iommufd[Symbol.asyncDispose]();
    await restore();
  });

  test("a machine closes it by itself", async () => {
    await using machine = await createPassthroughMachine({
      host: new LinuxHost(),
      devices: [{ id: "edu0", hostId: edu.name }],
      memory: createGuestMemory(4 * MiB),
    });
    const [{ vfio }] = machine.devices;
    const restore = await unbind(edu);
    // Ends only once the machine has let go of the device.
    await restore();
    await expect(vfio.attach(machine.devices[0].ioas)).rejects.toMatchObject({ code: "ENODEV" });
  });
});
