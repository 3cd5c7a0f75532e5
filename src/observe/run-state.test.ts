import { expect, test } from "vitest";
import type { ReadEvent } from "../migration/events.js";
import { ownerLabel } from "../tracking/owner.js";
import { afterEvent, ownersRead, type RunDevice, type RunEvent, type RunState, startOfRun } from "./run-state.js";

const DEVICES: readonly RunDevice[] = [
  { id: "vf0", model: "mlx5", tracker: "device", granule: 65_536 },
  { id: "nic0", model: "nic", tracker: "iommu", granule: 4096 },
  { id: "disk0", model: "blk", tracker: "iommu", granule: 4096 },
  { id: "old0", model: "blk", tracker: "everything", granule: null },
  { id: "old1", model: "blk", tracker: "everything", granule: null, suspended: true },
];
const SHARED = "domain:vf0+nic0+disk0";

function read(owners: Record<string, number>, more: Partial<ReadEvent> = {}): ReadEvent {
  const counts = Object.entries(owners).map(([name, reported]) => [
    name,
    { reported, exclusive: reported / 2, readMs: 2, heat: [reported] },
  ]);
  return { type: "read", atMs: 500, round: 0, elapsedMs: 500, owners: Object.fromEntries(counts), ...more };
}

const after = (events: readonly RunEvent[], devices = DEVICES): RunState =>
  events.reduce(afterEvent, startOfRun(devices));
const described = ({ owners }: RunState) =>
  owners.map(({ owner, tracker, granule, last }) => [ownerLabel(owner), tracker, granule, last !== null]);

test("before a read there is a row for each device, with the tracker that was chosen", () => {
  expect(described(startOfRun(DEVICES))).toEqual([
    ["vf0", "device", 65_536, false],
    ["nic0", "iommu", 4096, false],
    ["disk0", "iommu", 4096, false],
    ["old0", "everything", null, false],
    ["old1", "suspended", null, false],
  ]);
});

test("a read brings rows for its owners, and leaves those of devices that none of them covers", () => {
  expect(described(after([read({ cpu: 1, [SHARED]: 2, vf0: 3 })]))).toEqual([
    ["cpu", "cpu", 4096, true],
    ["vf0+nic0+disk0", "iommu", 4096, true],
    ["vf0", "device", 65_536, true],
    ["old0", "everything", null, false],
    ["old1", "suspended", null, false],
  ]);
});

test("a container covers all devices but a suspended one", () => {
  expect(described(after([read({ cpu: 1, container: 2 })]))).toEqual([
    ["cpu", "cpu", 4096, true],
    ["container", "container", null, true],
    ["old1", "suspended", null, false],
  ]);
});

test("an owner that no device of the header stands for is shown, its tracker unknown", () => {
  expect(described(after([read({ ghost: 1 })], []))).toEqual([["ghost", "unknown", null, true]]);
});

test("rates are of the last read, peaks and sums of all", () => {
  const [owner] = after([read({ vf0: 1000 }), read({ vf0: 100 }, { elapsedMs: 1000 })]).owners;
  expect(owner).toMatchObject({
    last: { reported: 100, bytesPerSecond: 100 * 4096 },
    peakBytesPerSecond: 2 * 1000 * 4096,
    total: { reads: 2, reported: 1100, exclusive: 550, readMs: 4 },
  });
});

test("an owner that the last read left out keeps its sums, and has no rate", () => {
  const state = after([read({ vf0: 10, cpu: 1 }), read({ cpu: 1 })]);
  expect(state.owners[0]).toMatchObject({ name: "vf0", last: null, total: { reported: 10 } });
  expect(ownersRead(state).map(({ name }) => name)).toEqual(["cpu"]);
});

test("phases, rounds and progress are the newest; a read that is told of late takes no round back", () => {
  const progress = {
    type: "progress" as const,
    atMs: 700,
    round: 1,
    sentBytes: 30,
    remainingBytes: 10,
    bytesPerSecond: 5,
    expectedDowntimeMs: 40,
    dirtyBytesPerSecond: {},
  };
  const before = after([{ type: "phase", phase: "pre-copy", atMs: 3 }, progress, read({ vf0: 1 })]);
  expect(before).toMatchObject({ phase: "pre-copy", round: 1, sentBytes: 30, remainingBytes: 10, atMs: 500, reads: 1 });
  const round = { round: 1, phase: "pre-copy", pages: 1, zeroPages: 0, bytes: 30, ms: 1, remaining: 99, byDevice: {} };
  const over = afterEvent(before, { type: "round", round: { ...round, phase: "pre-copy" } });
  expect(over).toMatchObject({ round: 1, sentBytes: 0, remainingBytes: 99, expectedDowntimeMs: 40 });
});

test("a machine that is watched has neither phase nor round; what a feed left out is counted", () => {
  const state = after([read({ vf0: 1 }, { round: null }), { type: "lost", events: 4 }, { type: "lost", events: 3 }]);
  expect(state).toMatchObject({ phase: null, round: null, lost: 7 });
});
