import { existsSync, renameSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import { createPassthroughMachine } from "../../../src/host/passthrough-machine.js";
import { LinuxHost } from "../../../src/linux/host.js";
import { LinuxIommufd } from "../../../src/linux/linux-iommufd.js";
import { type Iova, KiB, MiB, PAGE_SIZE } from "../../../src/memory/address.js";
import { DmaMemory } from "../../../src/memory/dma-memory.js";
import { createGuestMemory } from "../../../src/memory/guest-memory.js";
import { libc } from "../../../src/sys/libc.js";
import { dirtmap } from "../../support/program.js";
import { addMockDevice, markDirty, replaceMockDomain } from "../mock-iommu.js";
import { openDescriptors } from "../support/descriptors.js";
import { createMtty, type TestDevice } from "../support/vfio-devices.js";

const IOVA = 0x2000_0000n as Iova;
const RW = { readable: true, writeable: true } as const;

let before: string[];
beforeEach(() => {
  before = openDescriptors();
});
afterEach(() => {
  expect(openDescriptors(), "what was opened is closed").toEqual(before);
});

describe("a kernel without", () => {
  test("/dev/iommu: the library and the program say so, and that it is the node that is missing", async () => {
    await using mtty = createMtty();
    renameSync("/dev/iommu", "/dev/iommu.away");
    try {
      await using host = new LinuxHost();
      await expect(host.openIommufd()).rejects.toMatchObject({
        code: "ENOENT",
        message: expect.stringContaining("there is no /dev/iommu"),
        remedy: expect.stringContaining("hand the node to the container"),
      });
      const { code, stdout } = await dirtmap(["probe", "--host", "linux", "--json"]);
      expect(code).toBe(0);
      const { missing, devices } = JSON.parse(stdout);
      expect(missing).toContainEqual(
        expect.objectContaining({
          code: "IOMMUFD_NO_NODE",
          commands: [expect.stringMatching(/^mknod -m 0660 \/dev\/iommu c 10 \d+$/)],
        }),
      );
      expect(devices).toMatchObject([{ id: mtty.name, capabilities: null }]);
    } finally {
      renameSync("/dev/iommu.away", "/dev/iommu");
    }
  });

  test("an ioctl: ENOTTY, with the version that has it", async () => {
    // Answers every ioctl as an iommufd does that doesn't know it.
    await using iommufd = LinuxIommufd.open("/dev/zero");
    await expect(iommufd.allocIoas()).rejects.toMatchObject({
      code: "ENOTTY",
      syscall: "IOMMU_IOAS_ALLOC",
      remedy: expect.stringContaining("Linux 6.2"),
    });
    await expect(iommufd.setDirtyTracking(1, true)).rejects.toMatchObject({
      code: "ENOTTY",
      remedy: expect.stringContaining("Linux 6.7"),
    });
  });

  test("dirty tracking in a device's IOMMU: EOPNOTSUPP before anything is made", async () => {
    await using iommufd = LinuxIommufd.open();
    const ioas = await iommufd.allocIoas();
    const { device } = addMockDevice(iommufd.fd, ioas, { dirtyTracking: false });
    expect((await iommufd.hwInfo(device)).dirtyTracking).toBe(false);
    await expect(iommufd.allocHwpt({ device, ioas, dirtyTracking: true })).rejects.toMatchObject({
      code: "EOPNOTSUPP",
      remedy: expect.stringContaining("hwInfo()"),
    });
    // The kernel gives the lowest free id: none was used up.
    const next = await iommufd.allocIoas();
    await iommufd.destroy(next);
    expect(await iommufd.allocHwpt({ device, ioas, dirtyTracking: false })).toBe(next);
  });
});

describe("a device in use", () => {
  test("refuses a machine, which lets go of the devices that it had already", async () => {
    await using free = createMtty();
    await using taken = createMtty();
    await using holder = new LinuxHost();
    await (await holder.openDevice(taken.name)).bind(await holder.openIommufd());
    const held = openDescriptors();
    await using host = new LinuxHost();
    const devices = [free, taken].map(({ name }, index) => ({ id: `serial${index}`, hostId: name }));
    const make = () => createPassthroughMachine({ host, devices, memory: createGuestMemory(4 * MiB) });
    await expect(make()).rejects.toMatchObject({
      code: "EINVAL",
      syscall: "VFIO_DEVICE_BIND_IOMMUFD",
      message: expect.stringContaining(taken.name),
      remedy: expect.stringContaining("another process"),
    });
    expect(openDescriptors()).toEqual(held);
    await holder[Symbol.asyncDispose]();
    await (await make())[Symbol.asyncDispose]();
  });
});

describe("an mdev that is removed while it is in use", () => {
  /** Longer than a removal takes that nothing holds up. */
  const HELD_UP_MS = 500;

  test("stays until it is closed, goes on streaming and logging, and then is gone", async () => {
    const mtty = createMtty();
    await using host = new LinuxHost();
    const iommufd = await host.openIommufd();
    const device = await host.openDevice(mtty.name);
    await device.bind(iommufd);
    await device.attach(await iommufd.allocIoas());
    await device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [{ iova: IOVA, length: BigInt(MiB) }] });
    const stream = await device.setState("PRE_COPY");
    if (stream?.direction !== "saving") throw new Error("no stream to read");

    let removed = false;
    const removal = removeMdev(mtty).then(() => {
      removed = true;
    });
    await sleep(HELD_UP_MS);
    expect(removed).toBe(false);
    // mtty can't ask for its device back: what was begun can be ended in order.
    await device.setState("STOP_COPY");
    expect((await stream.read(KiB)).byteLength).toBeGreaterThan(0);
    const into = new DirtyBitmap({ iova: IOVA, length: BigInt(MiB), granule: PAGE_SIZE });
    await device.reportDmaLogging({ iova: IOVA, length: BigInt(MiB), pageSize: PAGE_SIZE, into });
    expect(removed).toBe(false);

    await device[Symbol.asyncDispose]();
    await removal;
    expect(existsSync(mtty.cdev)).toBe(false);
    await expect(stream.read(1)).rejects.toMatchObject({ code: "ENODEV" });
    await expect(device.state()).rejects.toMatchObject({ code: "EBADF" });
    await expect(host.openDevice(mtty.name)).rejects.toMatchObject({
      code: "ENODEV",
      remedy: expect.stringContaining("dirtmap probe"),
    });
  });

  function removeMdev({ sysfs }: TestDevice): Promise<void> {
    return writeFile(join(sysfs, "remove"), "1");
  }
});

describe("memory that the kernel can't write dirty bits to", () => {
  const PROT_READ = 1;
  const PROT_READ_WRITE = 3;
  const mprotect = libc.func("mprotect", "int", ["uintptr_t", "size_t", "int"]);

  // Linux takes the bits first, drops what it can't write, and answers success (iova_bitmap_set).
  test("is found out before the bits are taken: they are there for the next read", async () => {
    await using iommufd = LinuxIommufd.open();
    using memory = DmaMemory.allocate(64 * KiB);
    const ioas = await iommufd.allocIoas();
    const device = addMockDevice(iommufd.fd, ioas);
    const hwpt = await iommufd.allocHwpt({ device: device.device, ioas, dirtyTracking: true });
    replaceMockDomain(iommufd.fd, device, hwpt);
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    await iommufd.map(ioas, memory, { ...RW, iova: IOVA });
    await iommufd.setDirtyTracking(hwpt, true);
    const range = { iova: IOVA, length: BigInt(64 * KiB) };
    const marks = new DirtyBitmap({ ...range, granule: PAGE_SIZE });
    marks.set(5);
    markDirty(iommufd.fd, hwpt, marks);

    // Of a length that is read on a thread; on this one, the library itself writes to the bitmap before the kernel does.
    const wide = { iova: IOVA, length: BigInt(128 * MiB) };
    const into = new DirtyBitmap({ ...wide, granule: PAGE_SIZE });
    const read = () => iommufd.getDirtyBitmap(hwpt, { ...wide, pageSize: PAGE_SIZE, into, clear: true });
    expect(mprotect(into.address, PAGE_SIZE, PROT_READ)).toBe(0);
    try {
      await expect(read()).rejects.toMatchObject({ syscall: "madvise", remedy: expect.stringContaining("memory") });
    } finally {
      expect(mprotect(into.address, PAGE_SIZE, PROT_READ_WRITE)).toBe(0);
    }
    await read();
    expect([into.count(), into.get(5)]).toEqual([1, true]);
    await iommufd.unmap(ioas, IOVA, range.length);
  });
});
