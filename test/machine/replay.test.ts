import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { observeMachine } from "../../src/cli/run/shared/observe-machine.js";
import { openMachine } from "../../src/cli/sites/hosts.js";
import { TraceWriter } from "../../src/evidence/trace/file.js";
import type { TraceInterval } from "../../src/evidence/trace/interval.js";
import { machineSchema } from "../../src/host/description.js";
import { loadScenario } from "../../src/scenario/scenario.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { GPU, machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, Rig } from "../support/migration.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-replay-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Watches a small machine and keeps what was seen. */
async function recorded(name: string): Promise<{ path: string; intervals: TraceInterval[] }> {
  const path = join(folder, name);
  const intervals: TraceInterval[] = [];
  await using machine = await openMachine(machineOf([VF, NIC, GPU]));
  let writer: TraceWriter | undefined;
  await observeMachine({
    machine,
    policy: { ...DEFAULT_POLICY, trackers: { vf0: "device" } },
    design: "split",
    intervalMs: 50,
    durationMs: 500,
    signal: new AbortController().signal,
    host: machine.host.name,
    scenario: null,
    onHeader: async (header) => {
      writer = await TraceWriter.create(path, header);
    },
    onInterval: async (interval) => {
      intervals.push(interval);
      await writer?.add(interval);
    },
  });
  await writer?.end();
  await writer?.[Symbol.asyncDispose]();
  return { path, intervals };
}

describe("a machine that replays a trace", () => {
  it("writes the recorded pages and no others, is migrated like any other, and no write is lost", async () => {
    const { path, intervals } = await recorded("a.dtrc");
    const traced = new Set<number>();
    for (const { owners } of intervals) {
      for (const runs of owners.values()) {
        for (let i = 0; i < runs.length; i += 2) for (let p = 0; p < runs[i + 1]; p++) traced.add(runs[i] + p);
      }
    }
    expect(traced.size).toBeGreaterThan(50);
    const { machine: description } = loadScenario(path);
    expect(description.devices.map(({ id, model }) => [id, model])).toEqual([
      ["vcpus", "replay"],
      ["nic0", "replay"],
      ["vf0", "replay"],
      ["gpu0", "replay"],
    ]);
    await using rig = await Rig.startServed(description);
    const written = new Set<number>();
    const moved = await rig.migrate({
      policy: { trackers: { vf0: "device" } },
      runAfterMs: 600,
      hooks: {
        afterRead: (_, { arenas, memory }) => {
          for (const { firstPage, pages, arena, arenaPage } of memory.regions) {
            for (let page = 0; page < pages; page++) {
              const bit = arenaPage + page;
              if (((arenas[arena][bit >>> 5] >>> (bit & 31)) & 1) === 1) written.add(firstPage + page);
            }
          }
        },
      },
    });
    expectMoved(moved);
    for (const page of written) expect(traced.has(page)).toBe(true);
    expect(written.size).toBeGreaterThan(0);
  });

  it("may have other devices beside it, whose buffers are elsewhere", async () => {
    const { path } = await recorded("b.dtrc");
    const replay = { id: "old0", model: "replay", iommu: "iommu0", trace: path, owner: "vf0" } as const;
    const description = machineSchema.parse({ ...machineOf([NIC]), devices: [replay, NIC] });
    await using rig = await Rig.startServed(description);
    expectMoved(await rig.migrate({ runAfterMs: 600 }));
  });
});

describe("a scenario with a trace", () => {
  it("is refused in one line where the file is none, or the machine is too small for it", async () => {
    const description = (trace: string, memory: number) =>
      machineOf([{ id: "r0", model: "replay", iommu: "iommu0", trace, owner: "vf0" }], { memory });
    await expect(openMachine(description(import.meta.filename, 16 * 2 ** 20))).rejects.toMatchObject({
      code: "BAD_TRACE",
    });
    const path = join(folder, "high.dtrc");
    await using writer = await TraceWriter.create(path, {
      memoryBytes: 64 * 2 ** 20,
      platform: "pc",
      intervalMs: 100,
      startedAt: "2026-01-02T03:04:05.000Z",
      host: "emulated",
      scenario: null,
      zeroShare: null,
      deviceStateBytes: null,
      owners: [{ owner: "vf0", tracker: "device", granule: 4096, devices: [] }],
      unread: [],
    });
    await writer.add({ elapsedMs: 100, owners: new Map([["vf0", Uint32Array.of(8192, 4)]]) });
    await writer.end();
    await expect(openMachine(description(path, 16 * 2 ** 20))).rejects.toMatchObject({ code: "TRACE_DOES_NOT_FIT" });
    await using fits = await openMachine(description(path, 64 * 2 ** 20));
    expect(fits.devices.map(({ model }) => model)).toEqual(["replay"]);
  });
});
