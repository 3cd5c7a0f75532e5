import { expect, it } from "vitest";
import type { RamBitmap } from "../../src/bitmap/ram-bitmap.js";
import { iovaOf, PAGE_SIZE } from "../../src/memory/address.js";
import { Collector } from "../../src/tracking/collector.js";
import { deviceOwner } from "../../src/tracking/owner.js";
import { deviceTracker } from "../../src/tracking/trackers/device.js";
import { iommuTracker } from "../../src/tracking/trackers/iommu.js";
import { machineOf, NIC, pause, VF } from "../support/machines.js";
import { Rig } from "../support/migration.js";

/*
 * A VMM remaps memory under a running device: what the device wrote at an IOVA must be sent from where it went.
 */

it.each([
  ["system IOMMU", "writes on", NIC],
  ["system IOMMU", "is stopped", NIC],
  ["device", "writes on", VF],
  ["device", "is stopped", VF],
] as const)(
  "IOVA X mapped to A, written, unmapped, mapped to B: by the %s's tracker the next round sends A, while the device %s",
  async (kind, does, model) => {
    await using rig = await Rig.start(machineOf([model], { vcpus: { count: 0 } }));
    const { memory, devices } = rig.source;
    const [{ vfio, iommufd, deviceId }] = devices;
    const { u8 } = memory.arenas[0];
    const [{ firstPage: x, pages }] = (await vfio.stamps())?.spans ?? [];
    const range = { iova: iovaOf(x), length: BigInt(pages) * BigInt(PAGE_SIZE) };
    // Guest pages that nobody else uses; below 3 GiB a PC's guest pages are its arena's.
    const a = memory.bytes / PAGE_SIZE - 2 * pages;
    const b = a + pages;
    const map = (ioas: number, page: number) =>
      iommufd.map(
        ioas,
        { arena: memory.arenas[0], offset: page * PAGE_SIZE, length: pages * PAGE_SIZE },
        { iova: range.iova, readable: true, writeable: true },
      );
    const units = async () => (await vfio.counters()).units;
    const writesOn = async () => {
      const before = await units();
      for (let i = 0; i < 200 && (await units()) < before + 20; i++) await pause(10);
      expect(await units()).toBeGreaterThanOrEqual(before + 20);
    };

    await vfio.setState("STOP");
    const ioas = await iommufd.allocIoas();
    // Leaves of 4 KiB, so that each bit is a page's.
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    await map(ioas, a);
    const hwpt = await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: kind === "system IOMMU" });
    await vfio.attach(hwpt);
    const tracker =
      kind === "device"
        ? deviceTracker(vfio)
        : iommuTracker({ iommufd, hwpt, owner: deviceOwner("nic0"), type: "hwpt" });
    await using collector = new Collector(memory, [{ tracker, granule: null }], {
      areas: [{ ...range, guestPage: a }],
    });
    await collector.start();
    const copy = Buffer.from(u8.slice(0, memory.bytes));
    const send = ({ arenas: [words] }: RamBitmap): number[] => {
      const sent: number[] = [];
      for (let page = 0; page < words.length * 32; page++) {
        if ((words[page >>> 5] & (1 << (page & 31))) === 0) continue;
        sent.push(page);
        copy.set(u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE), page * PAGE_SIZE);
      }
      return sent;
    };
    const isA = (page: number) => page >= a && page < b;
    const changedInA = () =>
      Array.from({ length: pages }, (_, i) => a + i).filter((page) => {
        const at = page * PAGE_SIZE;
        return copy.compare(u8.subarray(at, at + PAGE_SIZE), 0, PAGE_SIZE, at, at + PAGE_SIZE) !== 0;
      });

    await vfio.setState("RUNNING");
    await writesOn();
    const quiesced = does === "is stopped";
    if (quiesced) await vfio.setState("STOP");
    await collector.collectBeforeUnmap(range, async () => void (await iommufd.unmap(ioas, range.iova, range.length)), {
      quiesced,
    });
    const written = changedInA();
    await map(ioas, b);
    await collector.mapped({ ...range, guestPage: b });
    if (quiesced) await vfio.setState("RUNNING");
    await writesOn();
    const first = send((await collector.read({ quiesced: false })).dirty);
    expect(written.length).toBeGreaterThan(0);
    // Without a stop in between, a write just before the unmap can't be told apart: all of A counts.
    expect(first.filter(isA)).toEqual(quiesced ? written : Array.from({ length: pages }, (_, i) => a + i));
    expect(first.some((page) => page >= b)).toBe(true);
    await writesOn();
    expect(send((await collector.read({ quiesced: false })).dirty).some(isA)).toBe(false);
    await vfio.setState("STOP");
    send((await collector.read({ quiesced: true, final: true })).dirty);
    expect(copy.compare(u8.subarray(0, memory.bytes))).toBe(0);
  },
);
