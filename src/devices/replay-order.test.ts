import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ReplaySchedule } from "../host/replay-schedule.js";
import { ReplayOrder, ReplayTimes } from "./replay-order.js";

/** Of what is written in each interval, and how long each takes. */
function scheduleOf(intervals: readonly { readonly pages: readonly number[]; readonly us: number }[]): ReplaySchedule {
  const all = intervals.flatMap(({ pages }) => pages);
  const pages = new Uint32Array(new SharedArrayBuffer(4 * all.length));
  pages.set(all);
  const writes = new Uint32Array(new SharedArrayBuffer(4 * intervals.length));
  const endsUs = new Float64Array(new SharedArrayBuffer(8 * intervals.length));
  let [written, us] = [0, 0];
  intervals.forEach((interval, i) => {
    writes[i] = written += interval.pages.length;
    endsUs[i] = us += interval.us;
  });
  return { pages, writes, endsUs };
}

const intervals = fc
  .array(
    fc.record({
      pages: fc.array(fc.nat({ max: 50 }), { maxLength: 12 }),
      us: fc.integer({ min: 1, max: 100_000 }),
    }),
    { minLength: 1, maxLength: 8 },
  )
  .filter((all) => all.some(({ pages }) => pages.length > 0));

describe("the order of a replay", () => {
  it("sends each write to the page that the trace has, round after round, and knows what each page then holds", () => {
    fc.assert(
      fc.property(intervals, fc.nat({ max: 300 }), (all, last) => {
        const schedule = scheduleOf(all);
        const order = new ReplayOrder(schedule);
        const writes = [...schedule.pages];
        const held = new Map<number, number>();
        for (let n = 1; n <= last; n++) {
          const page = order.pageOf(order.slotOf(n));
          expect(page).toBe(writes[(n - 1) % writes.length]);
          held.set(page, n);
        }
        const { pages, sequences } = order.places(last);
        expect(order.slots).toBe(new Set(writes).size);
        expect(pages.length).toBe(order.slots);
        pages.forEach((page, slot) => {
          expect(sequences[slot]).toBe(held.get(page) ?? 0);
        });
      }),
      { numRuns: 100 },
    );
  });
});

describe("the times of a replay", () => {
  it("have all of an interval's writes due at its end, none before it begins, and never fewer later", () => {
    fc.assert(
      fc.property(intervals, fc.nat({ max: 3 }), (all, rounds) => {
        const schedule = scheduleOf(all);
        const times = new ReplayTimes(schedule);
        const total = schedule.pages.length;
        let before = 0;
        schedule.endsUs.forEach((end, i) => {
          const at = rounds * times.lengthUs + end;
          expect(times.dueAfter(at)).toBe(rounds * total + schedule.writes[i]);
          const middle = times.dueAfter(at - all[i].us / 2);
          expect(middle).toBeGreaterThanOrEqual(rounds * total + before);
          expect(middle).toBeLessThanOrEqual(rounds * total + schedule.writes[i]);
          before = schedule.writes[i];
        });
      }),
      { numRuns: 100 },
    );
  });

  it("are found again from the number of writes: a device that resumes goes on where it was", () => {
    fc.assert(
      fc.property(intervals, fc.nat({ max: 200 }), (all, written) => {
        const times = new ReplayTimes(scheduleOf(all));
        const us = times.timeOf(written);
        // What comes next is due after it, what was written no later than then.
        expect(times.dueAfter(us + 1e-6 * us + 1e-3)).toBeGreaterThanOrEqual(written);
        expect(times.timeOf(written + 1)).toBeGreaterThanOrEqual(us);
      }),
      { numRuns: 100 },
    );
  });
});
