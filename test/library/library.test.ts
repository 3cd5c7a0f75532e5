import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  acceptedSource,
  chooseTrackers,
  DEFAULT_POLICY,
  DirtmapError,
  iovaOf,
  listen,
  type MachineDescription,
  MiB,
  type MigrationPhase,
  migrate,
  migrationEvents,
  openDesign,
  probeMachine,
  receive,
  sourceTransport,
  UsageError,
} from "dirtmap";
import { createEmulatedMachine, type EmulatedMachine } from "dirtmap/emulated";
import { loadScenario } from "dirtmap/scenario";
import { afterAll, beforeAll, expect, test } from "vitest";

/*
 * The package as its users import it: by name, from what is built.
 */

/** A machine of nic-pair's kind, small and slow enough for a busy computer. */
const description: MachineDescription = (() => {
  const { machine } = loadScenario("nic-pair");
  return {
    ...machine,
    memory: 16 * MiB,
    vcpus: { count: 1, rate: 0.5, footprint: 64 * 1024 },
    devices: machine.devices.map((device) => ({ ...device, load: { rate: 0.5, footprint: 128 * 1024 } })),
  };
})();

let journals: string;
beforeAll(() => {
  journals = mkdtempSync(join(tmpdir(), "dirtmap-library-"));
});
afterAll(() => {
  rmSync(journals, { recursive: true, force: true });
});

test("a machine's devices are probed, chosen for and tracked, and what they write is read", async () => {
  await using machine = await createEmulatedMachine(description);
  const choices = chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, trackers: { vf0: "device" } });
  expect(choices.map(({ device, tracker }) => [device, tracker])).toEqual([
    ["vf0", "device"],
    ["nic0", "iommu"],
  ]);
  await using tracking = await openDesign("split", machine, choices);
  await tracking.start();
  const reported: Record<string, number> = {};
  for (let reads = 0; reads < 100 && !(reported.vf0 > 0 && reported.nic0 > 0); reads++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    const { byOwner } = await tracking.read({ quiesced: false });
    for (const [owner, counts] of Object.entries(byOwner)) reported[owner] = (reported[owner] ?? 0) + counts.reported;
  }
  expect(reported.vf0).toBeGreaterThan(0);
  expect(reported.nic0).toBeGreaterThan(0);
});

test("a machine migrates to a destination of the same program, and tells its phases", async () => {
  const phases: MigrationPhase[] = [];
  const listener = (event: unknown) => {
    const { type, phase } = event as { type: string; phase: MigrationPhase };
    if (type === "phase") phases.push(phase);
  };
  migrationEvents.subscribe(listener);
  await using port = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  let arrived: EmulatedMachine | undefined;
  const receiving = port.acceptControl().then((control) =>
    receive({
      source: acceptedSource(port, control),
      createMachine: async (wanted) => {
        arrived = await createEmulatedMachine(wanted, { paused: true });
        return arrived;
      },
      audit: async () => (await arrived?.audit()) ?? { stamps: null, written: {} },
      journalDirectory: journals,
    }),
  );
  await using machine = await createEmulatedMachine(description);
  const report = await migrate({
    machine,
    description,
    transport: sourceTransport({ endpoint: port.endpoint }),
    policy: DEFAULT_POLICY,
    design: "split",
    downtimeLimitMs: 5_000,
    journalDirectory: journals,
  });
  migrationEvents.unsubscribe(listener);
  const result = await receiving;
  await using _arrived = arrived;
  expect(report).toMatchObject({ result: "completed", verified: true });
  expect(result.outcome).toBe("running");
  expect(phases).toEqual(expect.arrayContaining(["pre-copy", "stop-copy", "handover", "completed"]));
});

test("what can't be is refused with a code, and a remedy", async () => {
  await using machine = await createEmulatedMachine(description, { paused: true });
  const probed = await probeMachine(machine);
  const choose = () => chooseTrackers(probed, { ...DEFAULT_POLICY, trackers: { nic0: "device" } });
  expect(choose).toThrow(UsageError);
  expect(choose).toThrow(expect.objectContaining({ code: "TRACKER_LACKING", remedy: "nic0 has: iommu, everything" }));
  const [{ iommufd, ioas }] = machine.devices;
  const refusal = await iommufd.unmap(ioas, iovaOf(1), 4096n).catch((error: unknown) => error);
  expect(refusal).toBeInstanceOf(DirtmapError);
  expect(refusal).toMatchObject({ code: "ENOENT", errno: 2, syscall: "IOMMU_IOAS_UNMAP" });
});
