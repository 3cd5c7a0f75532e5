import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { EmulatedHost } from "../../src/emulated/host.js";
import { layoutWorkload } from "../../src/emulated/layout.js";
import type { Host, VfioDevice } from "../../src/host/host.js";
import { createPassthroughMachine, type PassthroughMachine } from "../../src/host/passthrough-machine.js";
import { MiB, PAGE_SIZE } from "../../src/memory/address.js";
import { fillMemory } from "../../src/memory/fill.js";
import { createGuestMemory, type GuestMemory } from "../../src/memory/guest-memory.js";
import { receive } from "../../src/migration/destination.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";
import { machineOf } from "../support/machines.js";

/*
 * Machines of passed-through devices know nothing of their host but the Host interface: here it is the emulated one. With
 * the devices of a real kernel they are tested in test/kernel/mock/migration.test.ts.
 */

const LOAD = { rate: 0, footprint: 64 * PAGE_SIZE };
const description = machineOf(
  [
    { id: "vf0", model: "mlx5", iommu: "iommu0", load: LOAD },
    { id: "gpu0", model: "vgpu", vram: 64 * 1024, load: LOAD },
  ],
  { memory: 8 * MiB, vcpus: { count: 0 } },
);
const DEVICES = [
  { id: "net0", hostId: "vf0" },
  { id: "display0", hostId: "gpu0" },
];

const opened: AsyncDisposable[] = [];
let journals: string;
beforeEach(() => {
  journals = mkdtempSync(join(tmpdir(), "dirtmap-passthrough-"));
});
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
  rmSync(journals, { recursive: true, force: true });
});

function hostWith(memory: GuestMemory): EmulatedHost {
  const host = new EmulatedHost({
    description,
    layout: layoutWorkload(description, memory.regions),
    memory,
    incarnation: 1,
    onDeath: (error) => {
      throw error;
    },
  });
  opened.push(host);
  return host;
}

async function machine(): Promise<PassthroughMachine> {
  const memory = createGuestMemory(description.memory);
  const made = await createPassthroughMachine({ host: hostWith(memory), devices: DEVICES, memory });
  opened.push(made);
  return made;
}

test("it has the devices by the names that it gives them, attached to all of its memory", async () => {
  const made = await machine();
  expect(made.devices.map(({ id, model, mdev }) => ({ id, model, mdev }))).toEqual([
    { id: "net0", model: "mlx5", mdev: false },
    { id: "display0", model: "vgpu", mdev: true },
  ]);
  const [{ iommufd, ioas }] = made.devices;
  expect(await iommufd.unmap(ioas, 0n, (1n << 64n) - 1n)).toBe(
    BigInt(made.memory.regions.reduce((sum, { pages }) => sum + pages * PAGE_SIZE, 0)),
  );
  expect(made.description).toEqual({
    kind: "passthrough",
    memory: 8 * MiB,
    platform: "pc",
    vcpus: 0,
    devices: [
      { id: "net0", model: "mlx5" },
      { id: "display0", model: "vgpu" },
    ],
  });
});

test("nobody may reach anybody over P2P unless the VMM says so, and nobody a suspended device", async () => {
  const memory = createGuestMemory(description.memory);
  const mayP2p = (initiator: string) => initiator === "net0";
  await using made = await createPassthroughMachine({ host: hostWith(memory), devices: DEVICES, memory, mayP2p });
  expect([made.mayP2p("net0", "display0"), made.mayP2p("display0", "net0")]).toEqual([true, false]);
  await made.setP2pReachable("display0", false);
  expect(made.mayP2p("net0", "display0")).toBe(false);
  await made.setP2pReachable("display0", true);
  expect(made.mayP2p("net0", "display0")).toBe(true);
  expect((await machine()).mayP2p("net0", "display0")).toBe(false);
});

test("a device that is there twice is refused before anything is opened", async () => {
  const memory = createGuestMemory(description.memory);
  const host = hostWith(memory);
  for (const devices of [
    [DEVICES[0], { id: "net1", hostId: "vf0" }],
    [DEVICES[0], { id: "net0", hostId: "gpu0" }],
  ]) {
    await expect(createPassthroughMachine({ host, devices, memory })).rejects.toMatchObject({
      code: "DUPLICATE_DEVICE",
    });
  }
});

test("a device that can't be opened closes those that were", async () => {
  const memory = createGuestMemory(description.memory);
  const host = hostWith(memory);
  const devices = [...DEVICES, { id: "net1", hostId: "vf9" }];
  await expect(createPassthroughMachine({ host, devices, memory })).rejects.toMatchObject({ code: "ENODEV" });
  // Neither is open any more.
  await using made = await createPassthroughMachine({ host, devices: DEVICES, memory });
  expect(made.devices).toHaveLength(2);
});

test("a device that its host wants back is closed by the machine", async () => {
  const memory = createGuestMemory(description.memory);
  const emulated = hostWith(memory);
  const unplug = new AbortController();
  const host: Host = {
    name: "emulated",
    devices: () => emulated.devices(),
    openIommufd: () => emulated.openIommufd(),
    openDevice: async (id): Promise<VfioDevice> =>
      Object.assign(await emulated.openDevice(id), { released: unplug.signal }),
    [Symbol.asyncDispose]: async () => {},
  };
  await using made = await createPassthroughMachine({ host, devices: [DEVICES[0]], memory });
  unplug.abort(new Error("unplugged"));
  await expect(made.devices[0].vfio.state()).rejects.toMatchObject({ code: "EBADF" });
  await using again = await vi.waitFor(() => emulated.openDevice("vf0"));
  expect(again.id).toBe("vf0");
});

test("it migrates to a destination that has devices of the same names and models, and to no other kind", async () => {
  const source = await machine();
  fillMemory(source.memory, 0.5, 1);
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const move = () =>
    migrate({
      machine: source,
      description: source.description,
      transport: sourceTransport({ endpoint: listener.endpoint }),
      policy: DEFAULT_POLICY,
      design: "split",
      downtimeLimitMs: 20_000,
      channels: 1,
      journalDirectory: journals,
    });
  const take = (options: Pick<Parameters<typeof receive>[0], "createMachine" | "createPassthroughMachine">) =>
    listener
      .acceptControl()
      .then((control) =>
        receive({ source: acceptedSource(listener, control), journalDirectory: journals, ...options }),
      );
  const refusing = take({ createMachine: () => Promise.reject(new Error("not asked for")) });
  await expect(move()).rejects.toMatchObject({ code: "INCOMPATIBLE" });
  expect((await refusing).outcome).toBe("refused");

  const taking = take({
    createPassthroughMachine: async (wanted) => {
      expect(wanted).toEqual(source.description);
      return await machine();
    },
  });
  const report = await move();
  expect(report.error).toBeUndefined();
  expect(report).toMatchObject({ result: "completed", verified: true });
  // By the machine's names, in all that is reported.
  expect(report.rounds[0]).toMatchObject({ byDevice: { net0: { reported: 0 }, display0: { reported: 0 } } });
  expect((await taking).outcome).toBe("running");
  const choices = chooseTrackers(await probeMachine(source), DEFAULT_POLICY);
  expect(choices.map(({ device }) => device)).toEqual(["net0", "display0"]);
});
