import { describe, expect, test } from "vitest";
import { EmulatedDesigns } from "../../src/emulated/designs/designs.js";
import { PhysicalMemory } from "../../src/emulated/physical-memory.js";
import type { GuestMemory } from "../../src/memory/guest-memory.js";
import type { TrackingDesign } from "../../src/tracking/choice.js";
import { DEFAULT_POLICY, type Policy } from "../../src/tracking/choice.js";
import { openDesign } from "../../src/tracking/designs.js";
import type { DirtySource } from "../../src/tracking/dirty-source.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";
import { suspendDevices } from "../../src/tracking/suspension.js";
import type { FakeDeviceOptions } from "../support/fake-host/device.js";
import { changesOf, type FakeMachine, fakeMachine, madeAndLeft, markedPages } from "../support/fake-host/machine.js";

/*
 * The thread's cases in each design: (a) both trackers on; (b) only the mlx5 tracker on; (c) mlx5 tracked and the other
 * device, untracked, suspended, without every page turning dirty.
 */

const EVERYTHING = 160 + 8 * 256 - 256;
const VF = { id: "vf0", log: {} };

function kernelDesigns(memory: GuestMemory): EmulatedDesigns {
  const physical = new PhysicalMemory();
  for (const arena of memory.arenas) physical.register(arena, { kind: "ram" });
  return new EmulatedDesigns({ memory, physical });
}

async function open(design: TrackingDesign, devices: FakeDeviceOptions[], policy: Partial<Policy>) {
  const machine = await fakeMachine(devices, { designs: kernelDesigns });
  const choices = chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, ...policy });
  const source = await openDesign(design, machine, choices);
  const suspension = await suspendDevices(machine, source.choices);
  await source.start();
  return { machine, source, suspension };
}

/** What one read reports: the pages, or "everything". */
async function read(source: DirtySource): Promise<number[] | "everything"> {
  const { dirty } = await source.read({ quiesced: false });
  return dirty.count() === EVERYTHING ? "everything" : markedPages(dirty);
}

/** Everything is as it was before: no tracker on, no domain left, each device attached to the IOAS. */
function expectUntouched({ iommufd, ioas, device }: FakeMachine, ids: string[]): void {
  for (const id of ids) expect(device(id).logging).toBe(false);
  expect(madeAndLeft(iommufd)).toEqual({ ioases: [ioas], hwpts: [] });
}

describe("case a, both trackers on", () => {
  const devices = [VF, { id: "nic0" }];
  const policy: Partial<Policy> = { trackers: { vf0: "device", nic0: "iommu" } };

  test.each<[TrackingDesign, number[] | "everything"]>([
    ["split", [300, 301]],
    ["aggregated", [300, 301]],
    ["iterating", [300, 301]],
    ["type1", "everything"],
  ])("%s reports %j", async (design, expected) => {
    const { machine, source } = await open(design, devices, policy);
    await machine.device("vf0").write(300);
    await machine.device("nic0").write(301);
    expect(await read(source)).toEqual(expected);
    expect(await read(source)).toEqual(design === "type1" ? "everything" : []);
    await source[Symbol.asyncDispose]();
    expectUntouched(machine, ["vf0", "nic0"]);
  });

  test("only split tells who reported what", async () => {
    const { machine, source } = await open("split", devices, policy);
    await machine.device("vf0").write(300);
    const { byOwner } = await source.read({ quiesced: false });
    expect(byOwner).toMatchObject({ vf0: { reported: 1, exclusive: 1 }, nic0: { reported: 0, exclusive: 0 } });
    await source[Symbol.asyncDispose]();

    const aggregated = await open("aggregated", devices, policy);
    await aggregated.machine.device("vf0").write(300);
    expect((await aggregated.source.read({ quiesced: false })).byOwner).toMatchObject({ container: { reported: 1 } });
    expect(aggregated.source.ledger.device("vf0").pagesReported).toBeNull();
    await aggregated.source[Symbol.asyncDispose]();
  });

  test("in a domain that both share, the IOMMU reports for the domain and the log for its device", async () => {
    const { machine, source } = await open("split", devices, { ...policy, domain: "shared" });
    await machine.device("vf0").write(300);
    await machine.device("nic0").write(301);
    const { byOwner } = await source.read({ quiesced: false });
    expect(byOwner).toMatchObject({
      "domain:vf0+nic0": { reported: 2, exclusive: 1 },
      vf0: { reported: 1, exclusive: 0 },
    });
    expect(source.ledger.device("nic0").pagesReported).toBeNull();
    expect(source.granuleOf("nic0")).toBe(4096);
    await source[Symbol.asyncDispose]();
    expectUntouched(machine, ["vf0", "nic0"]);
  });
});

describe("case b, only the mlx5 tracker on", () => {
  test.each<[TrackingDesign, number[] | "everything"]>([
    ["split", [300]],
    ["aggregated", [300]],
    ["iterating", [300]],
    ["type1", "everything"],
  ])("%s reports %j", async (design, expected) => {
    const { machine, source } = await open(design, [VF], { order: "device-first" });
    await machine.device("vf0").write(300);
    expect(await read(source)).toEqual(expected);
    // Nobody switched the IOMMU's tracking on.
    expect(changesOf(machine.iommufd).some((line) => line.endsWith("on"))).toBe(false);
    await source[Symbol.asyncDispose]();
    expectUntouched(machine, ["vf0"]);
  });
});

describe("case c, the mlx5 VF tracked and the untracked device suspended", () => {
  const devices = [VF, { id: "nic0", iommuTracks: false, iommu: "old" }];

  test.each<[TrackingDesign, number[] | "everything"]>([
    ["split", [300]],
    ["aggregated", [300]],
    ["iterating", "everything"],
    ["type1", "everything"],
  ])("%s reports %j", async (design, expected) => {
    const { machine, source, suspension } = await open(design, devices, {
      order: "device-first",
      untracked: "suspend",
    });
    expect(suspension.devices).toEqual(["nic0"]);
    expect(await machine.device("nic0").state()).toBe("STOP");
    await machine.device("vf0").write(300);
    expect(await read(source)).toEqual(expected);
    await suspension.resume();
    await source[Symbol.asyncDispose]();
    expectUntouched(machine, ["vf0", "nic0"]);
  });

  test.each<TrackingDesign>(["split", "aggregated"])("%s counts everything if it goes on running", async (design) => {
    const { machine, source } = await open(design, devices, { order: "device-first" });
    await machine.device("nic0").write(300);
    const { always } = await source.read({ quiesced: false });
    expect(always?.count()).toBe(EVERYTHING);
    await source[Symbol.asyncDispose]();
  });
});

describe("a log that is readable only when quiesced", () => {
  const devices = [{ id: "vf0", log: { readableWhen: "quiesced" as const } }, { id: "nic0" }];
  const policy: Partial<Policy> = { trackers: { vf0: "device" } };

  test("keeps one tracker unread in split, and all of them where the kernel reads in one call", async () => {
    for (const [design, pages] of [
      ["split", [301]],
      ["aggregated", []],
      ["iterating", []],
    ] as const) {
      const { machine, source } = await open(design, devices, policy);
      await machine.device("vf0").write(300);
      await machine.device("nic0").write(301);
      const running = await source.read({ quiesced: false });
      expect(markedPages(running.dirty)).toEqual(pages);
      expect(running.unread).toEqual([design === "split" ? "vf0" : "container"]);
      await machine.device("vf0").setState("STOP");
      const last = await source.read({ quiesced: true, final: true });
      expect(markedPages(last.dirty)).toEqual(design === "split" ? [300] : [300, 301]);
      await source[Symbol.asyncDispose]();
    }
  });
});

describe("a granule that two mapped areas have in common", () => {
  const devices = [{ id: "vf0", log: { pageSizes: [4096, 2 ** 21] } }];
  const policy: Partial<Policy> = { order: "device-first", granules: { vf0: 2 ** 21 } };

  test("is reported in both by the shared bitmap, and refused where there is no state to keep it in", async () => {
    const { machine, source } = await open("aggregated", devices, policy);
    await machine.device("vf0").write(300);
    expect((await source.read({ quiesced: false })).dirty.count()).toBe(512 - 96);
    await source[Symbol.asyncDispose]();

    const refused = open("iterating", devices, policy);
    await expect(refused).rejects.toMatchObject({ code: "EINVAL" });
  });
});

test("a design that the host's kernel lacks is refused, and nothing is changed", async () => {
  const machine = await fakeMachine([VF]);
  const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
  await expect(openDesign("aggregated", machine, choices)).rejects.toMatchObject({ code: "NO_SUCH_DESIGN" });
  expectUntouched(machine, ["vf0"]);
});
