import { closeSync, readSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { dup } from "../sys/fd.js";
import { MiB } from "./address.js";
import { openArena } from "./arena.js";
import { type Backing, DmaMemory } from "./dma-memory.js";
import { holdsOf } from "./holds.js";

const ORDINARY: readonly Backing[] = [{ kind: "anonymous" }, { kind: "memfd" }];

describe.runIf(process.platform === "linux")("memory for DMA", () => {
  it.each(ORDINARY)("is zero at first and, once let go of, again: $kind", (backing) => {
    const memory = DmaMemory.allocate(5000, backing);
    expect([memory.length, memory.fd === null]).toEqual([8192, backing.kind === "anonymous"]);
    expect(memory.bytes.every((byte) => byte === 0)).toBe(true);
    memory.bytes.fill(7);
    memory[Symbol.dispose]();
    memory[Symbol.dispose]();
    expect([memory.fd, memory.bytes.every((byte) => byte === 0)]).toEqual([null, true]);
    memory.bytes[0] = 1;
    expect(memory.bytes[0]).toBe(1);
  });

  it("of a memfd is the file's, for all who have it, and keeps its size", () => {
    using memory = DmaMemory.allocate(1 * MiB, { kind: "memfd" });
    memory.bytes[4097] = 42;
    const shared = dup(memory.fd ?? -1);
    try {
      const read = Buffer.alloc(1);
      readSync(shared, read, 0, 1, 4097);
      expect(read[0]).toBe(42);
    } finally {
      closeSync(shared);
    }
  });

  it("is not let go of while anybody holds the arena, through whatever view", () => {
    const memory = DmaMemory.allocate(4096);
    const holds = holdsOf(openArena(memory.arena.memory));
    holds.take();
    memory.bytes[0] = 9;
    expect(() => memory[Symbol.dispose]()).toThrow("EBUSY");
    expect(memory.bytes[0]).toBe(9);
    holds.release();
    memory[Symbol.dispose]();
    expect(memory.bytes[0]).toBe(0);
  });
});
