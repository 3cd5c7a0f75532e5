import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { PinLog, pagesOf } from "./pin-log.js";

/** The pages that a read of [firstPage, firstPage + pages) reports. */
function read(log: PinLog, firstPage: number, pages: number, granule = 4096): number[] {
  const into = new DirtyBitmap({ iova: BigInt(firstPage) << 12n, length: BigInt(pages) << 12n, granule });
  log.readAndClear({ firstPage, pages, into });
  const found: number[] = [];
  into.forEachPageRun((first, count) => {
    for (let i = 0; i < count; i++) found.push(first + i);
  });
  return found;
}

describe("PinLog", () => {
  it("reports pin, read, unpin, read, read as 1, 1, 0", () => {
    const log = new PinLog();
    log.start();
    log.pin(5, 1, true);
    expect(read(log, 0, 16)).toEqual([5]);
    log.unpin(5, 1);
    expect(read(log, 0, 16)).toEqual([5]);
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("counts pins for reading as clean", () => {
    const log = new PinLog();
    log.start();
    log.pin(5, 1, false);
    log.unpin(5, 1);
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("reports what was pinned before it was started and still is, and forgets the past when started again", () => {
    const log = new PinLog();
    log.pin(1, 1, true);
    log.pin(2, 1, true);
    log.unpin(2, 1);
    log.start();
    expect(read(log, 0, 16)).toEqual([1]);
    log.unpin(1, 1);
    log.start();
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("refuses to unpin what was pinned as another range", () => {
    const log = new PinLog();
    log.pin(1, 4, true);
    expect([log.unpin(1, 2), log.unpin(2, 4), log.unpin(1, 4), log.unpin(1, 4)]).toEqual([false, false, true, false]);
  });

  it("rounds outwards to the bitmap's granule", () => {
    const log = new PinLog();
    log.start();
    log.pin(5, 1, true);
    expect(read(log, 0, 16, 16384)).toEqual([4, 5, 6, 7]);
  });

  it("forgets no page when it merges what a slow reader has let pile up", () => {
    const log = new PinLog();
    log.start();
    const expected = new Set<number>();
    for (let i = 0; i < 20_000; i++) {
      const page = (i * 7919) % 30_011;
      log.pin(page, 2, true);
      log.unpin(page, 2);
      expected.add(page).add(page + 1);
    }
    expect(read(log, 0, 31_000)).toEqual([...expected].sort((a, b) => a - b));
    expect(read(log, 0, 31_000)).toEqual([]);
  });

  it("reports what a page-by-page model reports, over any sequence of pins, unpins and partial reads", () => {
    const page = fc.nat(31);
    const range = fc.record({ firstPage: page, pages: fc.integer({ min: 1, max: 6 }) });
    const operation = fc.oneof(
      fc.record({ op: fc.constant("pin" as const), range, write: fc.boolean() }),
      fc.record({ op: fc.constant("unpin" as const), which: fc.nat() }),
      fc.record({ op: fc.constant("wrote" as const), range }),
      fc.record({ op: fc.constant("read" as const), range }),
    );
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 50 }), (operations) => {
        const log = new PinLog();
        log.start();
        const held: { firstPage: number; pages: number }[] = [];
        const written = new Map<string, boolean>();
        const key = (r: { firstPage: number; pages: number }) => `${r.firstPage}:${r.pages}`;
        const past = new Set<number>();
        const each = (r: { firstPage: number; pages: number }, visit: (page: number) => void) => {
          for (let p = r.firstPage; p < r.firstPage + r.pages; p++) visit(p);
        };
        for (const step of operations) {
          if (step.op === "pin") {
            log.pin(step.range.firstPage, step.range.pages, step.write);
            held.push(step.range);
            written.set(key(step.range), step.write || (written.get(key(step.range)) ?? false));
          } else if (step.op === "unpin" && held.length > 0) {
            const [gone] = held.splice(step.which % held.length, 1);
            expect(log.unpin(gone.firstPage, gone.pages)).toBe(true);
            if (held.some((r) => key(r) === key(gone))) continue;
            if (written.get(key(gone))) each(gone, (p) => past.add(p));
            written.delete(key(gone));
          } else if (step.op === "wrote") {
            log.wrote(step.range.firstPage, step.range.pages);
            each(step.range, (p) => past.add(p));
          } else if (step.op === "read") {
            const { firstPage, pages } = step.range;
            const pinned = new Set<number>();
            for (const r of held) if (written.get(key(r))) each(r, (p) => pinned.add(p));
            const expected: number[] = [];
            each(step.range, (p) => {
              if (pinned.has(p) || past.has(p)) expected.push(p);
              past.delete(p);
            });
            expect(read(log, firstPage, pages)).toEqual(expected);
          }
        }
      }),
    );
  });

  it("remembers nothing before it is started, nor after it is stopped", () => {
    const log = new PinLog();
    log.wrote(1, 1);
    log.start();
    expect([log.logging, read(log, 0, 16)]).toEqual([true, []]);
    log.wrote(2, 1);
    log.stop();
    log.wrote(3, 1);
    expect([log.logging, read(log, 0, 16)]).toEqual([false, []]);
  });

  it("keeps what a pin may write until the last pin of its run is gone", () => {
    const log = new PinLog();
    log.start();
    log.pin(4, 2, true);
    log.pin(4, 2, false);
    expect(log.unpin(4, 2)).toBe(true);
    expect(log.pinned()).toMatchObject([{ firstPage: 4, pages: 2, write: true }]);
    expect(read(log, 0, 16)).toEqual([4, 5]);
    expect(log.unpin(4, 2)).toBe(true);
    expect(log.pinned()).toEqual([]);
    expect(read(log, 0, 16)).toEqual([4, 5]);
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("counts a run as writeable from the first pin that says so", () => {
    const log = new PinLog();
    log.start();
    log.pin(4, 1, false);
    expect(read(log, 0, 16)).toEqual([]);
    log.pin(4, 1, true);
    expect(read(log, 0, 16)).toEqual([4]);
  });

  it("reports into a bitmap of another range only what lies in both, at every edge", () => {
    for (let first = 0; first < 12; first++) {
      for (let pages = 1; pages < 12; pages++) {
        for (const granule of [4096, 8192]) {
          const log = new PinLog();
          log.start();
          log.wrote(first, pages);
          // The read is of pages 2 to 13, the bitmap of 4 to 9.
          const into = new DirtyBitmap({ iova: 4n << 12n, length: 6n << 12n, granule });
          log.readAndClear({ firstPage: 2, pages: 12, into });
          const perBit = granule / 4096;
          const expected = Array.from({ length: into.bits }, (_, bit) => bit).filter((bit) => {
            const from = Math.max(first, 2, 4 + bit * perBit);
            return from < Math.min(first + pages, 14, 4 + (bit + 1) * perBit);
          });
          const found = Array.from({ length: into.bits }, (_, bit) => bit).filter((bit) => into.get(bit));
          expect(found).toEqual(expected);
          // Nothing is set behind the bitmap's end.
          expect(into.count()).toBe(expected.length);
          const left = Array.from({ length: pages }, (_, i) => first + i).filter((page) => page < 2 || page >= 14);
          expect(read(log, 0, 32)).toEqual(left);
        }
      }
    }
  });

  it("forgets without a bitmap what it would have reported", () => {
    const log = new PinLog();
    log.start();
    log.wrote(3, 4);
    log.readAndClear({ firstPage: 4, pages: 2 });
    expect(read(log, 0, 16)).toEqual([3, 6]);
  });

  it("knows the pages that bytes touch", () => {
    expect(pagesOf(0n, 1n)).toEqual({ firstPage: 0, pages: 1 });
    expect(pagesOf(4095n, 1n)).toEqual({ firstPage: 0, pages: 1 });
    expect(pagesOf(4095n, 2n)).toEqual({ firstPage: 0, pages: 2 });
    expect(pagesOf(4096n, 4096n)).toEqual({ firstPage: 1, pages: 1 });
    expect(pagesOf(4096n, 4097n)).toEqual({ firstPage: 1, pages: 2 });
  });
});
