import { beforeAll, describe, expect, it } from "vitest";
import { FRAME_HEADER_BYTES } from "../../src/migration/stream/frame.js";
import type { Meddlers } from "../support/frame-proxy.js";
import { machineOf, VF } from "../support/machines.js";
import { expectMoved, expectRunning, Rig } from "../support/migration.js";

/*
 * The page channel of a real machine, damaged at each of its frames. One source goes through it all: whatever happened,
 * it runs on, has lost nothing, and is migrated in the end.
 */

const description = machineOf([VF], { memory: 4 * 2 ** 20, vcpus: { count: 0 }, fill: 0.3 });
const policy = { trackers: { vf0: "device" } } as const;
/** The control connection comes first. */
const CHANNEL = 1;

/** Frames that the page channel carries in a migration which nobody disturbs, from either side. */
let frames: readonly [number, number] = [0, 0];
beforeAll(async () => {
  await using rig = await Rig.start(description);
  const moved = await rig.migrate({ policy });
  expectMoved(moved);
  frames = moved.proxy.frames[CHANNEL];
  expect(frames[0]).toBeGreaterThan(4);
});

/** Migrates with the channel damaged: the source must run on, and say what happened. */
async function survive(rig: Rig, meddlers: Meddlers, message: RegExp): Promise<void> {
  const { report, received } = await rig.migrate({ policy, meddlers });
  expect(report.result).toBe("failed");
  expect(report.error?.message).toMatch(message);
  expect(received.outcome).toBe("discarded");
  // Where the channel didn't even open, there was nothing to record.
  expect(["running", undefined]).toContain(rig.journal(report, "source"));
  await expectRunning(rig.source);
}

/** Every frame that is sent for sure; the last ones depend on how many rounds it takes. */
const each = (count: number) => Array.from({ length: Math.min(count - 1, 6) }, (_, i) => i);

describe("a page channel", { timeout: 120_000 }, () => {
  it("that is cut at a frame boundary, whichever, loses nothing, and the machine is moved at the next try", async () => {
    await using rig = await Rig.start(description);
    for (const at of each(frames[0])) {
      await survive(
        rig,
        { toDestination: (frame, i, connection) => (connection === CHANNEL && i === at ? "cut" : frame) },
        /a channel was lost|the connection was cut/,
      );
    }
    expectMoved(await rig.migrate({ policy }));
  });

  it("whose answers are cut off at a frame boundary loses nothing", async () => {
    await using rig = await Rig.start(description);
    for (const at of each(frames[1])) {
      await survive(
        rig,
        { toSource: (frame, i, connection) => (connection === CHANNEL && i === at ? "cut" : frame) },
        /a channel was lost|the connection was cut/,
      );
    }
    expectMoved(await rig.migrate({ policy }));
  });

  it("with a flipped bit in page data, a run table or a header is given up with a clear message, and the source runs on", async () => {
    await using rig = await Rig.start(description);
    const spots = [(frame: Buffer) => frame.length - 1, () => FRAME_HEADER_BYTES, () => 20];
    for (const spot of spots) {
      let flipped = 0;
      const flip = (frame: Buffer, _: number, connection: number) => {
        // Type 4: PAGES, with data.
        if (connection !== CHANNEL || frame[5] !== 4 || frame.readUInt32LE(28) === 0 || flipped++ > 0) return frame;
        const damaged = Buffer.from(frame);
        damaged[spot(frame)] ^= 0x04;
        return damaged;
      };
      await survive(rig, { toDestination: flip }, /damaged|arrived other than|digest|checksum/);
      expect(flipped).toBeGreaterThan(0);
    }
    expectMoved(await rig.migrate({ policy }));
  });

  it("that ends in the middle of a frame is given up, and the source runs on", async () => {
    await using rig = await Rig.start(description);
    let halved = false;
    const half = (frame: Buffer, i: number, connection: number) => {
      if (connection !== CHANNEL || i < 1) return frame;
      if (halved) return "cut";
      halved = true;
      return frame.subarray(0, frame.length >> 1);
    };
    await survive(rig, { toDestination: half }, /a channel was lost|the connection was cut/);
  });
});
