import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createEmulatedMachine } from "../../src/emulated/machine.js";
import { benchDesigns } from "../../src/evidence/designs/bench.js";
import { Bursts } from "../../src/evidence/designs/bursts.js";
import { findCrossings } from "../../src/evidence/designs/crossings.js";
import { designFigures } from "../../src/evidence/designs/figures.js";
import {
  type DesignsResult,
  MEASURES,
  type ReadRow,
  readDesignsResult,
  resultText,
} from "../../src/evidence/designs/result.js";
import { WORKLOADS, type WorkloadName } from "../../src/evidence/designs/workload-names.js";
import { population } from "../../src/evidence/designs/workloads.js";
import type { MachineDescription } from "../../src/host/description.js";
import { MiB, PAGE_SIZE } from "../../src/memory/address.js";
import { loadScenario } from "../../src/scenario/scenario.js";
import { TRACKING_DESIGNS, type TrackingDesign } from "../../src/tracking/choice.js";
import { openDesign } from "../../src/tracking/designs.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";

/*
 * The bench of the designs on machines as small as they come: what it counts must be what the devices, the ledger and the
 * allocations say.
 */

const MEMORY = 16 * MiB;
const FOOTPRINT = 16;
/** All RAM that a device may write: 640 KiB, and all above 1 MiB. */
const EVERYTHING = (MEMORY - MiB + 640 * 1024) / PAGE_SIZE;
/** Writeable areas: below and above the hole under 1 MiB. A tracker is read once per area. */
const AREAS = 2;

const openMachine = (description: MachineDescription) => createEmulatedMachine(description, { feed: false });
const folder = mkdtempSync(join(tmpdir(), "dirtmap-designs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let result: DesignsResult;
beforeAll(async () => {
  result = await benchDesigns({
    host: "emulated",
    signal: new AbortController().signal,
    reads: {
      workloads: WORKLOADS,
      devices: [1, 4],
      memory: MEMORY,
      footprint: FOOTPRINT,
      repetitions: 1,
      reads: 1,
      countedReads: 1,
      openMachine,
    },
    migrations: null,
  });
}, 300_000);

function row(workload: WorkloadName, devices: number, design: TrackingDesign): ReadRow {
  const found = result.reads.find(
    (each) => each.workload === workload && each.devices === devices && each.design === design,
  );
  if (found === undefined) throw new Error(`no row for ${workload}, ${devices}, ${design}`);
  return found;
}

describe("what reads name", () => {
  test("is what was written, in split and aggregated, in every workload", () => {
    for (const workload of WORKLOADS) {
      for (const design of ["split", "aggregated"] as const) {
        const { pagesWritten, pagesReported } = row(workload, 4, design);
        expect({ workload, design, pagesReported }).toEqual({ workload, design, pagesReported: pagesWritten });
        expect(pagesWritten).toBe((workload === "c" ? 2 : 4) * FOOTPRINT);
      }
    }
  });

  test("is everything in type1 as soon as one device pins nothing, also in case b", () => {
    for (const workload of ["a", "b", "c", "A", "B"] as const) {
      expect(row(workload, 4, "type1").pagesReported).toBe(EVERYTHING);
    }
    expect(row("mdevs", 4, "type1").pagesReported).toBe(4 * FOOTPRINT);
  });

  test("is everything in case c where nobody can opt out", () => {
    expect(row("c", 4, "iterating").pagesReported).toBe(EVERYTHING);
    expect(row("c", 4, "aggregated").pagesReported).toBe(2 * FOOTPRINT);
    // Without a NIC there is nobody who would have to.
    expect(row("c", 1, "iterating").pagesReported).toBe(FOOTPRINT);
  });
});

describe("calls", () => {
  test("grow with the trackers in split, and don't where the kernel merges", () => {
    expect(row("b", 4, "split").perRead).toMatchObject({ calls: 4 * AREAS, innerCalls: 0, trackerReads: 4 * AREAS });
    for (const design of ["aggregated", "iterating"] as const) {
      expect(row("b", 4, design).perRead).toMatchObject({
        calls: AREAS,
        innerCalls: 4 * AREAS,
        trackerReads: 4 * AREAS,
      });
    }
    expect(row("b", 4, "type1").perRead).toMatchObject({ calls: AREAS, trackerReads: 0 });
  });

  test("of a domain that devices share are one device's: case a has a log for each VF, and one page table", () => {
    expect(row("a", 4, "split").perRead.calls).toBe((2 + 1) * AREAS);
    expect(row("B", 4, "split").perRead.calls).toBe((2 + 2) * AREAS);
    expect(row("shared-mdevs", 4, "split").perRead.calls).toBe(AREAS);
  });

  test("fill a bit per page that is mapped and writeable, each", () => {
    expect(row("b", 4, "split").perRead.bitmapBytes).toBe((4 * EVERYTHING) / 8);
    expect(row("b", 4, "aggregated").perRead.bitmapBytes).toBe(EVERYTHING / 8);
  });
});

describe("memory for dirty bits", () => {
  /** A bit per page of RAM: bitmap/ram-bitmap.ts. */
  const union = MEMORY / PAGE_SIZE / 8;
  /** A bit per logged page and per word of these, both padded: bitmap/shared-log.ts. */
  const log = Math.ceil(EVERYTHING / 32 / 16) * 64 + Math.ceil(Math.ceil(EVERYTHING / 32 / 16) / 2) * 4;
  /** A DirtyBitmap is whole pages, and one page for its alignment. */
  const shared = AREAS * 2 * PAGE_SIZE;

  test("is three unions for each owner and three for all, as the collector and its ledger hold", () => {
    for (const devices of [1, 4]) {
      expect(row("b", devices, "split").held).toEqual({
        logs: devices * log,
        kernel: 0,
        reader: (3 * devices + 3) * union,
      });
    }
  });

  test("is one owner's for the reader where the kernel merges, and a shared bitmap where the container has one", () => {
    const reader = 6 * union;
    expect(row("b", 4, "iterating").held).toEqual({ logs: 4 * log, kernel: 0, reader });
    expect(row("b", 4, "aggregated").held).toEqual({ logs: 4 * log, kernel: shared, reader });
    expect(row("b", 4, "type1").held).toEqual({ logs: 0, kernel: 0, reader });
  });

  test("of one log that mdevs share does not grow with them", () => {
    expect(row("shared-mdevs", 4, "split").held).toEqual(row("shared-mdevs", 1, "split").held);
    expect(row("mdevs", 4, "split").held.logs).toBe(0);
  });
});

test("what the ledger counts per device is what the devices wrote, and their sum is the union", async () => {
  const { description, policy } = population("B", { devices: 4, memory: MEMORY, footprint: FOOTPRINT, rate: 200 });
  await using machine = await openMachine(description);
  await using bursts = new Bursts(machine.devices, FOOTPRINT);
  await using source = await openDesign("split", machine, chooseTrackers(await probeMachine(machine), policy));
  await bursts.still();
  await source.start();
  const written = await bursts.write();
  const { dirty, byOwner } = await source.read({ quiesced: false });
  for (const { id, vfio } of machine.devices) {
    const { slots } = await vfio.counters();
    expect(written[id]).toBeGreaterThanOrEqual(slots);
    expect(byOwner[id]).toMatchObject({ reported: slots, exclusive: slots });
  }
  expect(dirty.count()).toBe(Object.values(byOwner).reduce((sum, { reported }) => sum + reported, 0));
  // Nobody writes but in a burst.
  expect((await source.read({ quiesced: false })).dirty.count()).toBe(0);
});

describe("a workload", () => {
  test.each([
    ["a", "case-a"],
    ["b", "case-b"],
    ["c", "case-c"],
    ["A", "vgpu-pair"],
    ["B", "nic-pair"],
  ] as const)("%s of its scenario's size has the scenario's devices and their choices", async (workload, scenario) => {
    const theirs = loadScenario(scenario);
    const devices = theirs.machine.devices.length;
    const ours = population(workload, { devices, memory: MEMORY, footprint: FOOTPRINT, rate: 1 });
    expect(ours.description.devices.map(({ model }) => model)).toEqual(
      theirs.machine.devices.map(({ model }) => model),
    );
    const choose = async (description: MachineDescription, policy: Parameters<typeof chooseTrackers>[1]) => {
      await using machine = await createEmulatedMachine(description, { paused: true });
      return chooseTrackers(await probeMachine(machine), policy).map(({ tracker, suspend, domain, granule }) => {
        return { tracker, suspend, granule, tracking: domain?.dirtyTracking ?? null };
      });
    };
    const order = theirs.migration.policy === "device-first" ? "device-first" : "iommu-first";
    const { trackers, granules, domain, untracked, untrackedDevices } = theirs.migration;
    expect(await choose(ours.description, ours.policy)).toEqual(
      await choose(theirs.machine, { order, trackers, granules, domain, untracked, untrackedDevices }),
    );
  });

  test("grows to 64 devices that each have buffers", () => {
    for (const workload of WORKLOADS) {
      const { description, active } = population(workload, { devices: 64, memory: 256 * MiB, footprint: 16, rate: 1 });
      expect(description.devices).toHaveLength(64);
      expect(active).toHaveLength(workload === "c" ? 32 : 64);
    }
  });
});

describe("a result", () => {
  test("says what it measures, on what machine, and that one repetition says little", () => {
    expect(result).toMatchObject({ schemaVersion: 1, kind: "designs", host: "emulated" });
    expect(result.measures).toMatch(/emulated.*no figure is a hardware's/);
    expect(result.machine.cores).toBeGreaterThan(0);
    expect(result.warnings.join("\n")).toContain("only 1 repetition");
    for (const { cpuMs, wallMs, lastReadMs, countedReadMs, inCallsMs } of result.reads) {
      for (const { median } of [cpuMs, wallMs, lastReadMs, inCallsMs]) expect(median).toBeGreaterThan(0);
      expect(inCallsMs.median).toBeLessThan(countedReadMs.median);
    }
  });

  test("comes back from its file, to five digits", () => {
    const file = join(folder, "designs.json");
    writeFileSync(file, resultText(result));
    const again = readDesignsResult(file);
    expect(again.reads.map(({ held, perRead }) => ({ held, perRead }))).toEqual(
      result.reads.map(({ held, perRead }) => ({ held, perRead })),
    );
    expect(JSON.parse(resultText(again))).toEqual(JSON.parse(readFileSync(file, "utf8")));
    expect(findCrossings(again.reads).length).toBe(result.crossings.length);
  });

  test("has a plot for each measure of each workload, named so that no file system confuses a and A", () => {
    const names = designFigures(result).map(({ name }) => name);
    expect(names).toHaveLength(WORKLOADS.length * MEASURES.length);
    expect(new Set(names.map((name) => name.toLowerCase())).size).toBe(names.length);
  });

  test("has a comparison of split with each rival, by each measure", () => {
    expect(result.crossings).toHaveLength(WORKLOADS.length * MEASURES.length * (TRACKING_DESIGNS.length - 1));
    const calls = result.crossings.find(
      ({ workload, measure, rival }) => workload === "b" && measure === "calls" && rival === "iterating",
    );
    expect(calls).toMatchObject({ crossings: [], ratioFirst: 1, ratioLast: 4, decidedLast: true });
  });

  test.each([
    ["another kind of file", '{"kind":"trackers","schemaVersion":1}'],
    ["a newer version", '{"kind":"designs","schemaVersion":2}'],
    ["a truncated file", '{"kind":"des'],
    ["a row that is none", null],
  ])("is refused in one line where it is %s", (_, text) => {
    const file = join(folder, "bad.json");
    writeFileSync(file, text ?? resultText({ ...result, reads: [{ ...result.reads[0], devices: -1 }] }));
    expect(() => readDesignsResult(file)).toThrow(
      expect.objectContaining({ code: "BAD_RESULT", message: expect.not.stringContaining("\n") }),
    );
    expect(() => readDesignsResult(join(folder, "none.json"))).toThrow(expect.objectContaining({ code: "BAD_RESULT" }));
  });
});

test("a bench that is cancelled ends, with nothing left open", async () => {
  const cancelled = new AbortController();
  const bench = benchDesigns({
    host: "emulated",
    signal: cancelled.signal,
    onProgress: () => cancelled.abort(new Error("enough")),
    reads: {
      workloads: ["b"],
      devices: [1],
      memory: MEMORY,
      footprint: FOOTPRINT,
      repetitions: 1,
      reads: 1,
      countedReads: 1,
      openMachine,
    },
    migrations: null,
  });
  await expect(bench).rejects.toThrow("enough");
});

test("a migration that fails costs no read that was measured, and is told of", async () => {
  const { reads, migrations, warnings } = await benchDesigns({
    host: "emulated",
    signal: new AbortController().signal,
    reads: {
      workloads: ["b"],
      devices: [1],
      memory: MEMORY,
      footprint: FOOTPRINT,
      repetitions: 1,
      reads: 1,
      countedReads: 1,
      openMachine,
    },
    migrations: {
      workloads: ["b"],
      devices: [1],
      memory: MEMORY,
      footprint: FOOTPRINT,
      rate: 1,
      bandwidth: 1e9,
      downtimeLimitMs: 1000,
      repetitions: 1,
      migrate: () => Promise.reject(new Error("the destination is on fire")),
    },
  });
  expect(reads).toHaveLength(TRACKING_DESIGNS.length);
  expect(migrations).toEqual([]);
  expect(warnings[0]).toContain("the destination is on fire");
});
