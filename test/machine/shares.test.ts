import { describe, expect, it } from "vitest";
import type { EmulatedMachine } from "../../src/emulated/machine.js";
import { machineSchema } from "../../src/host/description.js";
import type { PageNumber } from "../../src/memory/address.js";
import type { GuestMemory } from "../../src/memory/guest-memory.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { loadScenario } from "../../src/scenario/scenario.js";
import { DEFAULT_POLICY, type Policy } from "../../src/tracking/choice.js";
import { openDesign } from "../../src/tracking/designs.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";
import { DISK, GPU, machineOf, NIC, pause, VF } from "../support/machines.js";
import { expectMoved, Rig } from "../support/migration.js";
import { pagesWritten, runOn, stopAndAsk } from "../support/stamps.js";

/* What a report says of each tracker, against what the devices' own stamps say that they wrote. */

const reported = ({ rounds }: MigrationReport, owner: string) =>
  rounds.reduce((sum, { byDevice }) => sum + (byDevice[owner]?.reported ?? 0), 0);

/** Tracks the machine for a while; returns what was reported, and the pages that each writer wrote meanwhile. */
async function track(machine: EmulatedMachine, policy: Partial<Policy>) {
  const choices = chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, ...policy });
  await using source = await openDesign("split", machine, choices);
  const before = await stopAndAsk(machine);
  await source.start();
  await runOn(machine);
  await pause(200);
  const after = await stopAndAsk(machine);
  const { byOwner } = await source.read({ quiesced: true, final: true });
  const written = (writer: string) => pagesWritten(before.get(writer), after.get(writer));
  const owners = (page: PageNumber) => source.ledger.ownersOf(...placeOf(machine.memory, page));
  return { byOwner, written, owners };
}

function placeOf({ regions }: GuestMemory, page: PageNumber): [arena: number, arenaPage: number] {
  const region = regions.find(({ firstPage, pages }) => page >= firstPage && page < firstPage + pages);
  if (region === undefined) throw new Error(`guest page ${page} is no RAM`);
  return [region.arena, region.arenaPage + page - region.firstPage];
}

describe("in nic-pair", () => {
  it("what the mlx5 device alone writes shows as 0 pages of the system IOMMU", async () => {
    const { machine, migration } = loadScenario("nic-pair");
    const quiet = machine.devices.map((device) => ({
      ...device,
      load: { rate: device.id === "vf0" ? 2 : 0, footprint: 2 ** 19 },
    }));
    const vcpus = { count: 1, rate: 0, footprint: 4096 };
    await using rig = await Rig.start(machineSchema.parse({ ...machine, memory: 2 ** 24, devices: quiet, vcpus }));
    const { report, received } = await rig.migrate({ policy: { trackers: migration.trackers }, runAfterMs: 200 });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(received.outcome).toBe("running");
    expect(reported(report, "vf0")).toBeGreaterThan(0);
    expect(reported(report, "nic0")).toBe(0);
    expect(report.devices).toMatchObject([
      { id: "vf0", tracker: "device", pagesReported: reported(report, "vf0") },
      { id: "nic0", tracker: "iommu", pagesReported: 0, pagesExclusive: 0 },
    ]);
  });
});

describe("with a domain for each device", () => {
  it("each one's share is exactly the pages that its own stamps say it wrote", async () => {
    const description = machineOf([VF, NIC, DISK]);
    await using rig = await Rig.start(description);
    const { byOwner, written, owners } = await track(rig.source, { trackers: { vf0: "device" } });
    for (const [writer, owner] of [["vf0"], ["nic0"], ["disk0"], ["vcpu0", "cpu"]]) {
      const pages = written(writer);
      expect(pages.size).toBeGreaterThan(0);
      for (const page of pages) expect(owners(page)).toEqual([owner ?? writer]);
      expect(byOwner[owner ?? writer]).toMatchObject({ reported: pages.size, exclusive: pages.size });
    }
  });
});

describe("on one HWPT for several devices", () => {
  it("pages count for the domain, exactly those that one of them wrote", async () => {
    await using rig = await Rig.start(machineOf([NIC, DISK]));
    const { byOwner, written } = await track(rig.source, { domain: "shared" });
    const pages = new Set([...written("nic0"), ...written("disk0")]);
    expect(byOwner["domain:nic0+disk0"]).toMatchObject({ reported: pages.size, exclusive: pages.size });
    expect(Object.keys(byOwner)).toEqual(expect.not.arrayContaining(["nic0", "disk0"]));
  });

  it("a device that has a log of its own, and is alone on a domain, is counted by each of the two", async () => {
    const iommus = ["iommu0", "iommu1"].map((id) => ({ id, format: "amd-v1" as const }));
    await using rig = await Rig.start(machineOf([NIC, { ...VF, iommu: "iommu1" }], { iommus }));
    const { byOwner, written } = await track(rig.source, { domain: "shared", trackers: { vf0: "device" } });
    const pages = written("vf0").size;
    expect(byOwner.vf0).toMatchObject({ reported: pages, exclusive: 0 });
    expect(byOwner["domain:vf0"]).toMatchObject({ reported: pages, exclusive: 0 });
  });

  it("no device has a share in the report, and the machine is moved whole", async () => {
    await using rig = await Rig.start(machineOf([NIC, DISK]));
    const moved = await rig.migrate({ policy: { domain: "shared" } });
    expectMoved(moved);
    expect(reported(moved.report, "domain:nic0+disk0")).toBeGreaterThan(0);
    for (const device of moved.report.devices) {
      expect(device).toMatchObject({ tracker: "iommu", pagesReported: null, pagesExclusive: null });
    }
  });

  it("two mdevs on the tracker that iommufd's emulated IOMMU holds are moved whole, without shares", async () => {
    const gpus = ["gpu0", "gpu1"].map((id) => ({ ...GPU, id, sharedTracker: true }));
    await using rig = await Rig.start(machineOf(gpus, { iommus: [] }));
    const moved = await rig.migrate({ policy: { domain: "shared" } });
    expectMoved(moved);
    expect(reported(moved.report, "domain:gpu0+gpu1")).toBeGreaterThan(0);
    for (const device of moved.report.devices) {
      expect(device).toMatchObject({ tracker: "iommu", pagesReported: null, pagesExclusive: null });
    }
  });
});
