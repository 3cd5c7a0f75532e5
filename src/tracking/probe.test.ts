import { describe, expect, test } from "vitest";
import type { FakeDeviceOptions } from "../../test/support/fake-host/device.js";
import { fakeMachine, madeAndLeft } from "../../test/support/fake-host/machine.js";
import { MiB } from "../memory/address.js";
import { probeDevice, probeMachine } from "./probe.js";

async function probe(options: Omit<FakeDeviceOptions, "id">, { emulatedIommu = true } = {}) {
  const machine = await fakeMachine([{ id: "dev0", ...options }]);
  if (!emulatedIommu) machine.iommufd.script.fail("allocEmulatedIommu", "EOPNOTSUPP");
  const [probed] = await probeMachine(machine);
  expect(madeAndLeft(machine.iommufd).hwpts).toEqual([]);
  return probed;
}

describe("a PCI device", () => {
  test("with a log of its own has it and its IOMMU's tracker, and says so in the thread's flags", async () => {
    const { trackers, flags, migration } = await probe({ log: { pageSizes: [4096, 65536] } });
    expect(flags).toEqual({ tracksInternally: true, tracksThroughContainer: false });
    expect(trackers.iommu).toMatchObject({ available: true, pageSizes: [4096, 2 * MiB] });
    expect(trackers.device).toMatchObject({ available: true, pageSizes: [4096, 65536] });
    expect(trackers.pinned).toEqual({ available: false, why: "it is no mdev: the IOMMU pins all that is mapped" });
    expect(migration).toEqual({ stopCopy: true, p2p: true, preCopy: false });
  });

  test("lacks what it has not, each with why", async () => {
    const { trackers, migration } = await probe({ iommuTracks: false, migration: null });
    expect(trackers.iommu).toEqual({ available: false, why: "its IOMMU (amd) has no dirty tracking" });
    expect(trackers.device).toEqual({ available: false, why: "it has no DMA logging of its own" });
    expect(migration).toBeNull();
  });

  test("lacks a log that doesn't reach all of memory", async () => {
    const { trackers } = await probe({ log: { addressWidth: 22 } });
    expect(trackers.device).toEqual({
      available: false,
      why: "its log covers 22 bits of IOVA, and memory ends at 0x800000",
    });
  });

  test("has its log's reach told, not judged, where no guest's memory is known", async () => {
    const machine = await fakeMachine([{ id: "dev0", log: { addressWidth: 22 } }]);
    const { trackers } = await probeDevice(machine.devices[0], null);
    expect(trackers.device).toMatchObject({ available: true, what: expect.stringContaining("22 bits of IOVA") });
  });

  test("says when its log can be read", async () => {
    const { trackers } = await probe({ log: { readableWhen: "quiesced" } });
    expect(trackers.device).toMatchObject({ available: true, readableWhen: "quiesced" });
  });
});

describe("an mdev", () => {
  test("tracks by its pins, and has no IOMMU", async () => {
    const { trackers, iommu } = await probe({ mdev: true, log: {} });
    expect(iommu).toBeNull();
    expect(trackers.pinned).toMatchObject({
      available: true,
      what: "a log of what it pins (up to 16 ranges, 52 bits of IOVA)",
    });
    expect(trackers.device).toMatchObject({ available: false });
    expect(trackers.iommu).toEqual({
      available: false,
      why: "it is an mdev, and its hardware can't mark a shared tracker",
    });
  });

  test("without a log says who tells of its pins", async () => {
    const { trackers } = await probe({ mdev: true });
    expect(trackers.pinned).toEqual({ available: false, why: expect.stringContaining("type1, tells of pins") });
  });

  test("has the shared tracker where its hardware can mark it and the iommufd can hold it", async () => {
    const options = { mdev: true, log: {}, sharedTracker: true };
    expect((await probe(options)).trackers.iommu).toMatchObject({ available: true, pageSizes: [4096] });
    expect((await probe(options, { emulatedIommu: false })).trackers.iommu).toEqual({
      available: false,
      why: "this iommufd has no emulated IOMMU that could hold a shared tracker (EOPNOTSUPP)",
    });
  });
});
