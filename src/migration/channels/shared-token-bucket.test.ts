import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SharedTokenBucket } from "./shared-token-bucket.js";

const SECOND = 1e9;

/** A bucket on a clock of the test's own, and a second view of it as another thread would have it. */
function bucketAt(rate: number) {
  const clock = { ns: 0 };
  const now = () => BigInt(Math.round(clock.ns));
  const bucket = new SharedTokenBucket(undefined, now);
  bucket.setRate(rate);
  return { clock, bucket, other: new SharedTokenBucket(bucket.words, now) };
}

describe("the bandwidth limit", () => {
  it("lets no more pass than its rate, a burst of 20 ms, and each channel's last frame", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1000, max: 1e10 }),
        fc.array(fc.record({ frame: fc.integer({ min: 1, max: 1 << 20 }), ms: fc.nat(50), second: fc.boolean() })),
        (rate, steps) => {
          const { clock, bucket, other } = bucketAt(rate);
          let passed = 0;
          let largest = 0;
          for (const { frame, ms, second } of steps) {
            clock.ns += ms * 1e6;
            largest = Math.max(largest, frame);
            if ((second ? other : bucket).take(frame) === 0) passed += frame;
            expect(passed).toBeLessThanOrEqual((rate * (clock.ns + 0.02 * SECOND)) / SECOND + 1 + largest);
          }
        },
      ),
    );
  });

  it("lets the whole rate pass to whoever comes as often as it says", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1e10 }), fc.integer({ min: 1, max: 1 << 20 }), (rate, frame) => {
        const { clock, bucket } = bucketAt(rate);
        let passed = 0;
        for (let step = 0; step < 2000; step++) {
          const wait = bucket.take(frame);
          if (wait === 0) passed += frame;
          if (wait > 20) expect.fail(`a wait of ${wait} ms`);
          clock.ns += wait * 1e6;
        }
        // Waits are whole milliseconds, and one may be under way.
        expect(passed).toBeGreaterThanOrEqual((rate * (clock.ns - 0.022 * SECOND)) / SECOND - 2);
      }),
      { numRuns: 50 },
    );
  });

  it("is none at first, and none again after Infinity, whatever the debt", () => {
    const { clock, bucket } = bucketAt(10);
    clock.ns += SECOND;
    expect(bucket.take(1e6)).toBe(0);
    expect(bucket.take(1)).toBeGreaterThan(0);
    bucket.setRate(Number.POSITIVE_INFINITY);
    expect(bucket.take(1)).toBe(0);
    expect(new SharedTokenBucket().rate).toBe(Number.POSITIVE_INFINITY);
  });
});
