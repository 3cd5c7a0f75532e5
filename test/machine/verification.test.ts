import { expect, it } from "vitest";
import { forEachRun } from "../../src/bitmap/bits.js";
import type { RamBitmap } from "../../src/bitmap/ram-bitmap.js";
import { exitCodeOf } from "../../src/cli/exit-codes.js";
import { machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, expectRunning, Rig } from "../support/migration.js";
import { runOn, stopAndAsk } from "../support/stamps.js";

/*
 * One needed bit is dropped on purpose. Needed: a device wrote to the page after it was sent, and never again before the
 * end. The device has a large footprint and little to do, so it doesn't come round to a page twice.
 */

const SLOW_VF = { ...VF, load: { rate: 1, footprint: 8 * 2 ** 20 } };

/** Drops the last read's first page that `vf0` wrote: nothing writes to it any more. */
async function dropABit(verify: "before" | "after") {
  const rig = await Rig.start(machineOf([SLOW_VF, NIC], { memory: 2 ** 25 }));
  const dropped: number[] = [];
  const { spans } = await (async () => {
    const trails = await stopAndAsk(rig.source);
    await runOn(rig.source);
    return trails.get("vf0") ?? { spans: [] };
  })();
  const isBuffer = (page: number) => spans.some((span) => page >= span.firstPage && page < span.firstPage + span.pages);
  let stopped = false;
  const migrated = await rig.migrate({
    verify,
    policy: { trackers: { vf0: "device" } },
    hooks: {
      beforePhase: async (phase) => {
        // So that the last read has something of the VF's to drop.
        if (phase === "pausing") await new Promise((resolve) => setTimeout(resolve, 100));
        if (phase === "pausing") stopped = true;
      },
      afterRead: (_, { arenas: [words] }: RamBitmap) => {
        if (!stopped || dropped.length > 0) return;
        forEachRun(words, words.length * 32, (first) => {
          // Below 3 GiB a PC's guest pages are its arena's.
          if (dropped.length > 0 || !isBuffer(first)) return;
          dropped.push(first);
          words[first >>> 5] &= ~(1 << (first & 31));
        });
      },
    },
  });
  expect(dropped).toHaveLength(1);
  return { rig, ...migrated, address: `0x${(dropped[0] * 4096).toString(16)}` };
}

it("a needed bit that is dropped makes the result unverified: the page, its tracker and the stamps name the loss", async () => {
  const { rig, report, address } = await dropABit("after");
  await using _rig = rig;
  expect(report).toMatchObject({ result: "completed", verified: false });
  expect(exitCodeOf(report)).toBe(1);
  expect(report.memory).toMatchObject({ pagesDifferent: 1, firstAddresses: [address], coveredBy: ["vf0"] });
  expect(report.destination?.stamps?.problems).toEqual([{ owner: "vf0", kind: "lost", count: 1 }]);
});

it("a needed bit that is dropped fails a migration that verifies before GO, and the source runs on", async () => {
  const { rig, report, received, address } = await dropABit("before");
  await using _rig = rig;
  expect(report).toMatchObject({ result: "failed", verified: false, error: { code: "MEMORY_DIFFERS" } });
  expect(report.error?.message).toContain(address);
  expect(exitCodeOf(report)).toBe(1);
  expect(received.outcome).toBe("discarded");
  await expectRunning(rig.source);
  expectMoved(await rig.migrate({ verify: "before" }));
});
