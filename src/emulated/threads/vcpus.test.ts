import { afterEach, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { createGuestMemory, type GuestMemory } from "../../memory/guest-memory.js";
import { eventually } from "../vfio/bench.test.helper.js";
import type { MmioOperations } from "./vcpu-protocol.js";
import { EmulatedVcpus } from "./vcpus.js";

const MEMORY = 8 * MiB;
const PAGES = MEMORY / PAGE_SIZE;
const buffers = [
  [{ firstPage: 300, pages: 40 }],
  [{ firstPage: 400, pages: 40 }],
  [
    { firstPage: 500, pages: 10 },
    { firstPage: 600, pages: 30 },
  ],
];

/** There are no devices to drive. */
const nobody = async (): Promise<never> => {
  throw new Error("no such device");
};
const mmio: MmioOperations = { read: nobody, write: nobody, counters: nobody };

const open: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of open.splice(0)) await each[Symbol.asyncDispose]();
});

function start(memory: GuestMemory, incarnation = 1, rate = 20): EmulatedVcpus {
  const vcpus = new EmulatedVcpus({
    memory,
    buffers,
    rate,
    incarnation,
    drivers: [],
    mmio,
    onDeath(error) {
      throw error;
    },
  });
  open.push(vcpus);
  return vcpus;
}

async function writtenAtLeast(vcpus: EmulatedVcpus, units: number): Promise<void> {
  await eventually(async () => (await vcpus.trails()).every(({ lastSequence }) => lastSequence >= units));
}

function bitmap(): DirtyBitmap {
  return new DirtyBitmap({ iova: 0n, length: BigInt(MEMORY), granule: PAGE_SIZE });
}

describe("emulated vCPUs", () => {
  it("write their buffers while they run, and nothing once a pause was answered", async () => {
    const memory = createGuestMemory(MEMORY);
    const vcpus = start(memory);
    expect((await vcpus.trails()).every(({ lastSequence }) => lastSequence === 0)).toBe(true);
    await vcpus.resume();
    await writtenAtLeast(vcpus, 60);
    await vcpus.pause();
    const trails = await vcpus.trails();
    expect(trails.map(({ writer }) => writer).sort()).toEqual(["vcpu0", "vcpu1", "vcpu2"]);
    await new Promise((resolve) => setTimeout(resolve, 30));
    for (const trail of trails) {
      expect(checkStamps(memory, trail)).toMatchObject({ checked: 40, lost: 0, torn: 0, reordered: 0, foreign: 0 });
    }
    expect(await vcpus.trails()).toEqual(trails);
  });

  it("go on at a destination where they stopped at the source", async () => {
    const memory = createGuestMemory(MEMORY);
    const source = start(memory, 1);
    await source.resume();
    await writtenAtLeast(source, 50);
    await expect(source.saveState()).rejects.toMatchObject({ code: "EBUSY" });
    await source.pause();
    const state = await source.saveState();
    const before = new Map((await source.trails()).map(({ writer, lastSequence }) => [writer, lastSequence]));

    const destination = start(memory, 2);
    await destination.loadState(state);
    await destination.resume();
    await eventually(async () =>
      (await destination.trails()).every((trail) => trail.lastSequence > (before.get(trail.writer) ?? 0) + 10),
    );
    await destination.pause();
    for (const trail of await destination.trails()) {
      expect(trail.epochs.map(({ incarnation }) => incarnation)).toEqual([1, 2]);
      expect(stampsIntact(checkStamps(memory, trail))).toBe(true);
    }
  });

  it("refuse a state that is not theirs", async () => {
    const vcpus = start(createGuestMemory(MEMORY));
    const state = JSON.parse(new TextDecoder().decode(await vcpus.saveState()));
    const load = (value: unknown) => vcpus.loadState(new TextEncoder().encode(JSON.stringify(value)));
    for (const bad of [
      null,
      {},
      { ...state, version: 1 },
      { ...state, vcpus: state.vcpus.slice(1) },
      { ...state, drivers: [{}] },
    ]) {
      await expect(load(bad)).rejects.toMatchObject({ code: "BAD_VCPU_STATE" });
    }
    await expect(vcpus.loadState(Uint8Array.of(1, 2))).rejects.toMatchObject({ code: "BAD_VCPU_STATE" });
    await load(state);
  });

  it("are logged: each page once, only while the log is on", async () => {
    const memory = createGuestMemory(MEMORY);
    const vcpus = start(memory);
    const query = { firstPage: 0, pages: PAGES };
    await expect(vcpus.readAndClearDirtyLog({ ...query, into: bitmap() })).rejects.toMatchObject({ code: "EINVAL" });
    await vcpus.resume();
    await writtenAtLeast(vcpus, 10);
    await vcpus.startDirtyLog();
    await expect(vcpus.startDirtyLog()).rejects.toMatchObject({ code: "EINVAL" });
    const from = Math.max(...(await vcpus.trails()).map(({ lastSequence }) => lastSequence));
    await writtenAtLeast(vcpus, from + 45);
    await vcpus.pause();
    const into = bitmap();
    await vcpus.readAndClearDirtyLog({ ...query, into });
    expect(into.count()).toBe(120);
    const again = bitmap();
    await vcpus.readAndClearDirtyLog({ ...query, into: again });
    expect(again.count()).toBe(0);
    await vcpus.stopDirtyLog();
    await vcpus.resume();
    await writtenAtLeast(vcpus, from + 60);
    await vcpus.pause();
    await vcpus.startDirtyLog();
    const none = bitmap();
    await vcpus.readAndClearDirtyLog({ ...query, into: none });
    expect(none.count()).toBe(0);
  });

  it("lose no page to a reader that reads, clears and copies while they write", async () => {
    const memory = createGuestMemory(MEMORY);
    const copy = createGuestMemory(MEMORY);
    const vcpus = start(memory, 1, 60);
    await vcpus.startDirtyLog();
    await vcpus.resume();
    const readAndCopy = async () => {
      const into = bitmap();
      await vcpus.readAndClearDirtyLog({ firstPage: 0, pages: PAGES, into });
      into.forEachPageRun((first, pages) => {
        const [at, end] = [first * PAGE_SIZE, (first + pages) * PAGE_SIZE];
        copy.arenas[0].u8.set(memory.arenas[0].u8.subarray(at, end), at);
      });
    };
    const until = performance.now() + 600;
    while (performance.now() < until) {
      await readAndCopy();
      await new Promise((resolve) => setImmediate(resolve));
    }
    await vcpus.pause();
    await readAndCopy();
    expect(Buffer.compare(copy.arenas[0].u8.subarray(0, MEMORY), memory.arenas[0].u8.subarray(0, MEMORY))).toBe(0);
  });
});
