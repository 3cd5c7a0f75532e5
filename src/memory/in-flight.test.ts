import { describe, expect, it } from "vitest";
import { isErrno } from "../uapi/errno.js";
import { InFlight } from "./in-flight.js";

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

  it("give a hanging owner up with ETIMEDOUT", async () => {
    const inFlight = InFlight.allocate(1);
    inFlight.begin(0);
    const error = await inFlight.drain([0], 20).catch((caught: unknown) => caught);
    expect(isErrno(error, "ETIMEDOUT")).toBe(true);
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
