import { describe, expect, it } from "vitest";
import { openMachine } from "../../src/cli/sites/hosts.js";
import type { StampTrail } from "../../src/devices/stamp.js";
import type { EmulatedMachine } from "../../src/emulated/machine.js";
import { drivenModel, type MachineDescription, machineSchema } from "../../src/host/description.js";
import type { PageNumber } from "../../src/memory/address.js";
import type { GuestMemory } from "../../src/memory/guest-memory.js";
import { loadScenario, scenarioNames } from "../../src/scenario/scenario.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { openDesign } from "../../src/tracking/designs.js";
import { covers, parseOwner } from "../../src/tracking/owner.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";
import { pause } from "../support/machines.js";
import { pagesWritten, runOn, stopAndAsk } from "../support/stamps.js";

/*
 * The ledger's sums against what the devices and vCPUs count themselves, on the machines of the shipped scenarios, made
 * smaller and slower so that a busy computer keeps up. Drivers' devices don't number what they write, and are left out.
 */

const NAMES = scenarioNames().filter((name) => !loadScenario(name).machine.devices.some((d) => drivenModel(d)));

function smaller(machine: MachineDescription): MachineDescription {
  const load = { rate: 2, footprint: 512 * 1024 };
  return machineSchema.parse({
    ...machine,
    memory: 32 * 2 ** 20,
    vcpus: { ...machine.vcpus, rate: 1, footprint: 256 * 1024 },
    devices: machine.devices.map((device) => ({ ...device, load })),
  });
}

function placeOf({ regions }: GuestMemory, page: PageNumber): [arena: number, arenaPage: number] {
  const region = regions.find(({ firstPage, pages }) => page >= firstPage && page < firstPage + pages);
  if (region === undefined) throw new Error(`guest page ${page} is no RAM`);
  return [region.arena, region.arenaPage + page - region.firstPage];
}

/** Which owner follows a writer: a vCPU is `cpu`, a device itself or the domain that it shares. */
function follows(owner: string, writer: string): boolean {
  return writer.startsWith("vcpu") ? owner === "cpu" : covers(parseOwner(owner), writer);
}

/** Units written between two looks. */
function units(before: ReadonlyMap<string, StampTrail>, now: ReadonlyMap<string, StampTrail>, owner: string): number {
  let sum = 0;
  for (const [writer, { lastSequence }] of now) {
    if (follows(owner, writer)) sum += lastSequence - (before.get(writer)?.lastSequence ?? 0);
  }
  return sum;
}

async function watched(machine: EmulatedMachine, name: string) {
  const { trackers, granules, domain } = loadScenario(name).migration;
  const policy = { ...DEFAULT_POLICY, trackers, granules, domain };
  const choices = chooseTrackers(await probeMachine(machine), policy);
  return { source: await openDesign("split", machine, choices), choices };
}

describe.each(NAMES)("in the scenario %s", (name) => {
  it("whatever a writer counts was reported by whoever follows it, and the ledger's sums agree", async () => {
    await using machine = await openMachine(smaller(loadScenario(name).machine));
    const { source, choices } = await watched(machine, name);
    await using _source = source;
    const before = await stopAndAsk(machine);
    await source.start();
    await runOn(machine);
    for (let read = 0; read < 3; read++) {
      await pause(80);
      const { dirty, byOwner } = await source.read({ quiesced: false });
      expectConsistent(dirty.count(), byOwner);
    }
    const after = await stopAndAsk(machine);
    const last = await source.read({ quiesced: true, final: true });
    expectConsistent(last.dirty.count(), last.byOwner);

    const { ledger } = source;
    for (const [writer, trail] of after) {
      const pages = pagesWritten(before.get(writer), trail);
      expect(pages.size).toBeGreaterThan(0);
      for (const page of pages) {
        const owners = ledger.ownersOf(...placeOf(machine.memory, page));
        expect(owners.some((owner) => follows(owner, writer))).toBe(true);
      }
    }
    const totals = ledger.totals();
    for (const [owner, { reported, exclusive }] of Object.entries(totals)) {
      const reads = ledger.reads.flatMap((read) => read[owner] ?? []);
      expect(reads.reduce((sum, read) => sum + read.reported, 0)).toBe(reported);
      expect(reads.reduce((sum, read) => sum + read.exclusive, 0)).toBe(exclusive);
      // A tracker with a bit per page names none that was not written since the read before: each took a unit.
      const trackers = choices.filter(({ device }) => follows(owner, device)).map(({ tracker }) => tracker);
      const byPage = trackers.every((tracker) => tracker === "iommu" || tracker === "device");
      const small = choices.every(({ device }) => !follows(owner, device) || source.granuleOf(device) === 4096);
      if (byPage && small) expect(reported).toBeLessThanOrEqual(units(before, after, owner));
    }
    for (const { id } of machine.devices) {
      const own = totals[id];
      expect(ledger.device(id).pagesReported).toBe(own === undefined ? null : own.reported);
    }
  });
});

/** Of one read: nobody is alone with more than it reported, all together name the union, and no page is counted twice. */
function expectConsistent(union: number, owners: Readonly<Record<string, { reported: number; exclusive: number }>>) {
  const counts = Object.values(owners);
  for (const { reported, exclusive } of counts) expect(exclusive).toBeLessThanOrEqual(reported);
  expect(counts.reduce((sum, { exclusive }) => sum + exclusive, 0)).toBeLessThanOrEqual(union);
  expect(counts.reduce((sum, { reported }) => sum + reported, 0)).toBeGreaterThanOrEqual(union);
}
