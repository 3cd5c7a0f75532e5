import { afterEach, describe, expect, it, vi } from "vitest";
import { isErrno } from "../uapi/errno.js";
import { IN_FLIGHT_WORDS, InFlight } from "./in-flight.js";

/** True once the promise has settled; looks after a few turns of the event loop. */
async function settles(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  promise.then(
    () => {
      settled = true;
    },
    () => {
      settled = true;
    },
  );
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  return settled;
}

describe("in-flight words", () => {
  it("let a drain through where nothing is in flight", async () => {
    const inFlight = InFlight.allocate(3);
    inFlight.begin(1);
    inFlight.end(1);
    expect(await settles(inFlight.drain([0, 1, 2]))).toBe(true);
  });

  it("hold a drain until the DMA that was in flight has ended, and only for the owners asked for", async () => {
    const inFlight = InFlight.allocate(2);
    inFlight.begin(1);
    expect(await settles(inFlight.drain([0]))).toBe(true);
    const drained = inFlight.drain([0, 1]);
    expect(await settles(drained)).toBe(false);
    inFlight.end(1);
    expect(await settles(drained)).toBe(true);
  });

  it("do not hold a drain for a DMA that began after it", async () => {
    const inFlight = InFlight.allocate(1);
    inFlight.begin(0);
    const drained = inFlight.drain([0]);
    inFlight.end(0);
    inFlight.begin(0);
    expect(await settles(drained)).toBe(true);
  });

  it("tell an owner that its cache was flushed, and no other", () => {
    const inFlight = InFlight.allocate(2);
    const before = inFlight.begin(0);
    inFlight.end(0);
    const other = inFlight.begin(1);
    inFlight.end(1);
    inFlight.flush(0);
    expect(inFlight.begin(0)).not.toBe(before);
    expect(inFlight.begin(1)).toBe(other);
  });

  it("hold a drain for each of the owners that has a DMA in flight, whichever ends last", async () => {
    for (const order of [
      [0, 1, 2],
      [2, 1, 0],
      [1, 2, 0],
    ]) {
      const inFlight = InFlight.allocate(3);
      for (const owner of order) inFlight.begin(owner);
      const drained = inFlight.drain([0, 1, 2]);
      for (const owner of order.slice(0, 2)) inFlight.end(owner);
      expect(await settles(drained)).toBe(false);
      inFlight.end(order[2]);
      expect(await settles(drained)).toBe(true);
    }
  });

  it("are a cache line apart, and of one owner alone", () => {
    const inFlight = InFlight.allocate(3);
    expect(inFlight.words.length).toBe(3 * IN_FLIGHT_WORDS);
    expect(IN_FLIGHT_WORDS * 4).toBe(64);
    inFlight.begin(1);
    inFlight.flush(1);
    expect([...inFlight.words].flatMap((word, at) => (word === 0 ? [] : [[at, word]]))).toEqual([
      [IN_FLIGHT_WORDS, 1],
      [IN_FLIGHT_WORDS + 1, 1],
    ]);
  });

  it("are flushed for every owner before any is waited for", async () => {
    const inFlight = InFlight.allocate(3);
    inFlight.begin(0);
    const invalidated = inFlight.invalidate([0, 2]);
    expect([0, 1, 2].map((owner) => inFlight.words[owner * IN_FLIGHT_WORDS + 1])).toEqual([1, 0, 1]);
    expect(await settles(invalidated)).toBe(false);
    // A DMA that began meanwhile goes by what is there now.
    inFlight.begin(2);
    inFlight.end(0);
    expect(await settles(invalidated)).toBe(true);
  });

  it("give a hanging owner up with ETIMEDOUT", async () => {
    const inFlight = InFlight.allocate(1);
    inFlight.begin(0);
    const error = await inFlight.drain([0], 20).catch((caught: unknown) => caught);
    expect(isErrno(error, "ETIMEDOUT")).toBe(true);
  });

  it("name the owner that hangs, and give it the time that it was to have", async () => {
    const inFlight = InFlight.allocate(3);
    inFlight.begin(2);
    const now = vi.spyOn(Date, "now").mockReturnValue(1000);
    const drained = inFlight.drain([0, 2], 50).catch((error: unknown) => error);
    now.mockReturnValue(1050);
    expect(await settles(drained)).toBe(false);
    now.mockReturnValue(1051);
    expect(String(await drained)).toContain("port 2 for 50 ms");
  });

  it("go on when the sequence overflows 32 bits", async () => {
    const inFlight = InFlight.allocate(1);
    Atomics.store(inFlight.words, 0, 0x7ffffffe);
    inFlight.begin(0);
    const drained = inFlight.drain([0]);
    expect(await settles(drained)).toBe(false);
    inFlight.end(0);
    expect(await settles(drained)).toBe(true);
    expect(Atomics.load(inFlight.words, 0) & 1).toBe(0);
  });
});

/*
 * The accesses are the fences that order a DMA's stores before the reader's copying: plain ones would lose a write about once
 * in 10^7, which no test would show.
 */
describe("accesses to in-flight words", () => {
  afterEach(() => {
    vi.restoreAllMocks();
  });

  function accesses(run: (inFlight: InFlight) => void): [method: string, word: number][] {
    const inFlight = InFlight.allocate(2);
    const order: [string, number][] = [];
    for (const method of ["load", "store", "add"] as const) {
      const original = Atomics[method] as (...args: unknown[]) => unknown;
      vi.spyOn(Atomics, method).mockImplementation(((...args: unknown[]) => {
        order.push([method, args[1] as number]);
        return original(...args);
      }) as never);
    }
    run(inFlight);
    vi.restoreAllMocks();
    return order;
  }

  it("are atomic, the sequence before the generation", () => {
    const at = IN_FLIGHT_WORDS;
    expect(accesses((inFlight) => inFlight.begin(1))).toEqual([
      ["store", at],
      ["load", at + 1],
    ]);
    expect(accesses((inFlight) => inFlight.end(1))).toEqual([["store", at]]);
    expect(accesses((inFlight) => inFlight.flush(1))).toEqual([["add", at + 1]]);
    expect(accesses((inFlight) => void inFlight.drain([0, 1]))).toEqual([
      ["load", 0],
      ["load", at],
    ]);
  });
});
