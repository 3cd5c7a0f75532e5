import { expect, it } from "vitest";
import { MiB } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { type BitmapAllocation, bitmapAllocations } from "./allocations.js";
import { DirtyBitmap } from "./dirty-bitmap.js";
import { RamBitmap } from "./ram-bitmap.js";
import { SharedLog } from "./shared-log.js";

/** What is published while something is made. */
function published<Made>(make: () => Made): { made: Made; allocations: BitmapAllocation[] } {
  const allocations: BitmapAllocation[] = [];
  const note = (message: unknown) => void allocations.push(message as BitmapAllocation);
  bitmapAllocations.subscribe(note);
  try {
    return { made: make(), allocations };
  } finally {
    bitmapAllocations.unsubscribe(note);
  }
}

it("the memory of each bitmap and log is told of, and who holds it", () => {
  const bitmap = published(() => new DirtyBitmap({ iova: 0n, length: 32769n * 4096n, granule: 4096 }));
  // Two pages of bits, and one that aligning them may cost.
  expect(bitmap.allocations).toEqual([{ holder: bitmap.made, kind: "bitmap", bytes: 3 * 4096 }]);
  const log = published(() => SharedLog.create(1024));
  expect(log.allocations).toEqual([{ holder: log.made, kind: "log", bytes: 128 + 4 }]);
  const memory = createGuestMemory(16 * MiB);
  const ram = published(() => new RamBitmap(memory));
  const bytes = ram.made.arenas.reduce((sum, words) => sum + words.byteLength, 0);
  expect(bytes).toBeGreaterThanOrEqual((16 * MiB) / 4096 / 8);
  expect(ram.allocations).toEqual([{ holder: ram.made, kind: "bitmap", bytes }]);
});

it("memory that is another's already is not told of again", () => {
  const words = new Uint32Array(new SharedArrayBuffer(4));
  const bitmap = () => new DirtyBitmap({ iova: 0n, length: 4096n, granule: 4096 }, words);
  expect(published(bitmap).allocations).toEqual([]);
  const memory = createGuestMemory(16 * MiB);
  const { arenas } = new RamBitmap(memory);
  expect(published(() => new RamBitmap(memory, arenas)).allocations).toEqual([]);
});
