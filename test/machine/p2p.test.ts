import { describe, expect, it } from "vitest";
import { GPU, machineOf, NIC, pause, VF } from "../support/machines.js";
import { expectMoved, expectRunning, Rig } from "../support/migration.js";

/* vf0 and nic0 write into gpu0's video memory, as far as they may. */

const machine = (p2p: "all" | "none" | "table") =>
  machineOf(
    [
      { ...VF, p2pTargets: ["gpu0"] },
      { ...NIC, p2pTargets: ["gpu0"] },
      { ...GPU, vram: 2 ** 20 },
    ],
    { p2p },
  );

async function counters(rig: Rig, device: string): Promise<Record<string, number>> {
  return (await rig.source.devices.find(({ id }) => id === device)?.vfio.counters()) ?? {};
}

/** Waits until both have tried to write to their peer since. */
async function triedAgain(rig: Rig): Promise<void> {
  const tried = async () =>
    Promise.all(
      ["vf0", "nic0"].map(async (id) => {
        const { p2pUnits, p2pRefused } = await counters(rig, id);
        return p2pUnits + p2pRefused;
      }),
    );
  const before = await tried();
  for (const until = Date.now() + 5000; Date.now() < until; await pause(10)) {
    if ((await tried()).every((now, i) => now > before[i])) return;
  }
  throw new Error("no P2P DMA was tried");
}

describe("P2P DMA in a migration", () => {
  it.each(["all", "table"] as const)(
    "that is allowed (%s) reaches its target, and is not taken for RAM",
    async (p2p) => {
      await using rig = await Rig.start(machine(p2p));
      await triedAgain(rig);
      for (const id of ["vf0", "nic0"]) expect(await counters(rig, id)).toMatchObject({ p2pRefused: 0 });
      const moved = await rig.migrate({ policy: { trackers: { vf0: "device" } } });
      expectMoved(moved);
      // The target's memory moves with its state.
      const gpu = (at: typeof rig.source | undefined) => at?.host.slot("gpu0").memory?.arena.u8 ?? new Uint8Array();
      expect(gpu(rig.source).some((byte) => byte !== 0)).toBe(true);
      expect(gpu(moved.destination).some((byte) => byte !== 0)).toBe(true);
    },
  );

  it("that is refused (none) is counted, leaves no byte in the target, and damages nothing", async () => {
    await using rig = await Rig.start(machine("none"));
    await triedAgain(rig);
    for (const id of ["vf0", "nic0"]) {
      const { p2pUnits, p2pRefused, faults } = await counters(rig, id);
      expect({ p2pUnits, faults }).toEqual({ p2pUnits: 0, faults: 0 });
      expect(p2pRefused).toBeGreaterThan(0);
    }
    const vram = rig.source.host.slot("gpu0").memory?.arena.u8 ?? new Uint8Array([1]);
    expect(vram.every((byte) => byte === 0)).toBe(true);
    await expectRunning(rig.source);
    expectMoved(await rig.migrate({ policy: { trackers: { vf0: "device" } } }));
  });

  it("to a suspended target is refused while it is suspended, and allowed again when the migration is cancelled", async () => {
    const nic1 = { id: "nic1", model: "nic", iommu: "iommu1", load: VF.load } as const;
    const description = machineOf([{ ...VF, p2pTargets: ["nic1"] }, nic1], {
      iommus: [
        { id: "iommu0", format: "amd-v1" },
        { id: "iommu1", format: "amd-v1", dirtyTracking: false },
      ],
    });
    await using rig = await Rig.start(description);
    const refused = async () => (await counters(rig, "vf0")).p2pRefused;
    const reached = async () => (await counters(rig, "vf0")).p2pUnits;
    for (let i = 0; i < 300 && (await reached()) === 0; i++) await pause(10);
    expect(await refused()).toBe(0);
    const cancelled = new AbortController();
    let during = { refused: 0, reached: 0 };
    const { report } = await rig.migrate({
      policy: { untracked: "suspend" },
      signal: cancelled.signal,
      hooks: {
        beforePhase: async (phase) => {
          if (phase !== "pre-copy") return;
          const before = await reached();
          for (let i = 0; i < 300 && (await refused()) === 0; i++) await pause(10);
          during = { refused: await refused(), reached: (await reached()) - before };
          cancelled.abort();
        },
      },
    });
    expect(report.result).toBe("cancelled");
    expect(report.devices.find(({ id }) => id === "nic1")?.suspendedMs).toBeGreaterThan(0);
    expect(during.refused).toBeGreaterThan(0);
    expect(during.reached).toBe(0);
    const before = await reached();
    for (let i = 0; i < 300 && (await reached()) === before; i++) await pause(10);
    expect(await reached()).toBeGreaterThan(before);
    await expectRunning(rig.source);
  });
});
