import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openMachine } from "../../src/cli/sites/hosts.js";
import type { MachineDescription } from "../../src/host/description.js";
import { MiB } from "../../src/memory/address.js";
import type { ReceiveOptions } from "../../src/migration/destination.js";
import { DISK, GPU, LOAD, machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, expectRunning, Rig } from "../support/migration.js";

/*
 * A destination that builds something else than the source has: a guest must not find other hardware after a migration. Both
 * sides are told before anything is started.
 */

/** Processes are started, on a computer that may be busy. */
const LONG = { timeout: 120_000 };

let folder: string;
const file = (name: string, bytes: number): string => {
  const path = join(folder, name);
  writeFileSync(path, "x");
  truncateSync(path, bytes);
  return path;
};
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "dirtmap-hardware-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Migrates to a destination that builds the other machine, whatever is described to it. */
async function expectRefused(source: MachineDescription, other: MachineDescription, difference: string): Promise<void> {
  await using rig = await Rig.startServed(source);
  const phases: string[] = [];
  await using opened = new AsyncDisposableStack_();
  const createMachine: ReceiveOptions["createMachine"] = async () =>
    opened.use(await openMachine(other, { paused: true, side: "destination" }));
  const moving = rig.migrate({
    receiving: { createMachine },
    hooks: {
      beforePhase: (phase) => {
        phases.push(phase);
      },
    },
  });
  // A UsageError: exit code 2.
  const outcome = await moving.then(
    ({ report }) => report.result,
    (error: unknown) => error,
  );
  expect(outcome).toMatchObject({
    name: "UsageError",
    code: "OTHER_HARDWARE",
    message: expect.stringContaining(difference),
  });
  expect(phases).toEqual(["connecting"]);
  await expectRunning(rig.source);
}

/** What is used is disposed of, the last first. Node 20 has no AsyncDisposableStack. */
class AsyncDisposableStack_ implements AsyncDisposable {
  readonly #used: AsyncDisposable[] = [];

  use<T extends AsyncDisposable>(one: T): T {
    this.#used.push(one);
    return one;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const one of this.#used.reverse()) await one[Symbol.asyncDispose]();
  }
}

/** Enough for a driver's rings. */
const DRIVEN = { ...LOAD, footprint: MiB };
const ENGINE = { id: "engine0", model: "dma-engine", iommu: "iommu0", load: DRIVEN } as const;

describe("a destination is refused that has", () => {
  it("a disk of another size", LONG, async () => {
    const disk = (bytes: number) =>
      machineOf([
        { id: "disk0", model: "nvme", iommu: "iommu0", load: DRIVEN, file: file(`${bytes}.img`, bytes) },
        NIC,
      ]);
    await expectRefused(disk(8 * MiB), disk(4 * MiB), "disk0: the source's capacity is 8 MiB, the destination's 4 MiB");
  });

  it("a file of another size behind its disk", LONG, async () => {
    const disk = (bytes: number) => machineOf([{ ...DISK, file: file(`${bytes}.blk`, bytes) }]);
    await expectRefused(disk(2 * MiB), disk(MiB), "disk0: the source's capacity is 2 MiB, the destination's 1 MiB");
  });

  it("less video memory, or less memory of a device", LONG, async () => {
    await expectRefused(
      machineOf([GPU]),
      machineOf([{ ...GPU, vram: 32 * 1024 }]),
      "gpu0: the source's region 2 (bar2) is 64 KiB rw, the destination's 32 KiB rw",
    );
    await expectRefused(
      machineOf([{ ...ENGINE, memory: 64 * 1024 }]),
      machineOf([{ ...ENGINE, memory: 128 * 1024 }]),
      "engine0: the source's region 2 (bar2) is 64 KiB rw, the destination's 128 KiB rw",
    );
  });

  it("a BAR that peers write to, which the source's has not", LONG, async () => {
    await expectRefused(
      machineOf([VF, NIC]),
      machineOf([{ ...VF, p2pTargets: ["nic0"] }, NIC]),
      "nic0: the source's region 2 (bar2) is absent",
    );
  });

  it("another device by the same name, a device less or more, other memory or vCPUs", LONG, async () => {
    await expectRefused(
      machineOf([NIC]),
      machineOf([{ ...VF, id: "nic0" }]),
      "nic0: the source's is a nic, the destination's a mlx5",
    );
    await expectRefused(machineOf([VF, NIC]), machineOf([VF]), "nic0: the source has it, the destination does not");
    await expectRefused(machineOf([VF]), machineOf([VF, NIC]), "nic0: the destination has it, the source does not");
    await expectRefused(
      machineOf([VF]),
      machineOf([VF], { memory: 32 * MiB, vcpus: { count: 2, rate: 1, footprint: 65536 } }),
      "the source's memory is 640 KiB at 0x0, 256 KiB at 0xc0000 (read-only), 15 MiB at 0x100000, the destination's",
    );
  });

  it("a served device of another shape, as its own server tells it", LONG, async () => {
    const disk = (bytes: number) =>
      machineOf([{ id: "disk0", model: "nvme", load: DRIVEN, serve: true, file: file(`${bytes}.served`, bytes) }]);
    await expectRefused(disk(8 * MiB), disk(4 * MiB), "disk0: the source's capacity is 8 MiB, the destination's 4 MiB");
    const gpu = (vram: number) => machineOf([{ id: "gpu0", model: "vgpu", load: LOAD, serve: true, vram }]);
    await expectRefused(
      gpu(64 * 1024),
      gpu(32 * 1024),
      "gpu0: the source's region 2 (bar2) is 64 KiB rw, the destination's 32 KiB rw",
    );
  });
});

it("a device is the same after its guest has written all over its configuration space", LONG, async () => {
  await using rig = await Rig.start(machineOf([VF, NIC, DISK, GPU]));
  for (const { vfio } of rig.source.devices) {
    const before = await vfio.shape();
    // But for the command register: they go on doing DMA.
    await vfio.regionWrite(7, 0x06, new Uint8Array(250).fill(0xff));
    await vfio.regionWrite(7, 0x00, new Uint8Array(4).fill(0xff));
    expect(await vfio.shape()).toEqual(before);
  }
  expectMoved(await rig.migrate());
});
