import { describe, expect, it } from "vitest";
import { DirtmapError } from "../../src/errors.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { FRAME_HEADER_BYTES } from "../../src/migration/stream/frame.js";
import { reworded, says } from "../support/frame-proxy.js";
import { type Damage, type Loopback, loopback } from "./loopback.js";

/** Runs one migration over a damaged connection, and checks what must hold whatever happens. */
async function survive(damage: Damage): Promise<MigrationReport["result"] | "refused"> {
  const pair = await loopback({ damage });
  try {
    const outcome = await Promise.race([
      pair.migrate({ decideMs: 0 }).then(
        (report) => check(pair, report),
        (error: unknown) => {
          // Nothing was started: only then may it throw.
          expect(error).toBeInstanceOf(DirtmapError);
          expect(pair.source.runsFreely).toBe(true);
          return "refused" as const;
        },
      ),
      new Promise<never>((_, reject) => setTimeout(() => reject(new Error("it hangs")), 15_000).unref()),
    ]);
    expect(pair.witness.violations).toEqual([]);
    return outcome;
  } finally {
    await pair.close();
  }
}

function check(pair: Loopback, report: MigrationReport): MigrationReport["result"] {
  const { source, destination, witness } = pair;
  if (report.result === "failed") {
    expect(report.error?.message).not.toBe("");
    expect(witness.running).toEqual(["source"]);
    expect(source.runsFreely).toBe(true);
    expect(source.whole).toBe(true);
  } else if (report.result === "completed") {
    expect(report.verified === true || report.error !== undefined).toBe(true);
    expect(witness.running).toEqual(["destination"]);
    expect(destination?.whole).toBe(true);
  } else {
    expect(report.result).toBe("indeterminate");
    expect(source.vcpus.paused).toBe(true);
    expect(witness.running).not.toContain("source");
  }
  return report.result;
}

/** Frames that a migration sends, in each direction, if nobody disturbs it. */
async function framesOf(): Promise<readonly number[]> {
  const pair = await loopback();
  await pair.migrate();
  await pair.received;
  await pair.close();
  return pair.frames;
}

/** Eight at a time: most of the time is waiting. */
async function all<T>(items: readonly (() => Promise<T>)[]): Promise<T[]> {
  const results: T[] = [];
  for (let at = 0; at < items.length; at += 8) {
    results.push(...(await Promise.all(items.slice(at, at + 8).map((run) => run()))));
  }
  return results;
}

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

describe("a migration whose control connection", () => {
  it("is cut after each frame to the destination never has two machines running, and loses nothing", async () => {
    const [frames] = await framesOf();
    const results = await all(upTo(frames).map((at) => () => survive({ cutAfterToDestination: at })));
    expect(results).toContain("failed");
  });

  it("is cut after each frame to the source never has two machines running, and loses nothing", async () => {
    const [, frames] = await framesOf();
    const results = await all(upTo(frames).map((at) => () => survive({ cutAfterToSource: at })));
    expect(results).toContain("failed");
    expect(results).toContain("indeterminate");
  });

  const flip = (at: (frame: Buffer) => number, index: number) => (frame: Buffer, i: number) => {
    if (i !== index) return frame;
    const damaged = Buffer.from(frame);
    damaged[at(frame)] ^= 0x10;
    return damaged;
  };

  it.each(["toDestination", "toSource"] as const)(
    "carries a flipped bit in any frame %s is given up",
    async (direction) => {
      const frames = (await framesOf())[direction === "toDestination" ? 0 : 1];
      const spots = [(frame: Buffer) => frame.length - 1, () => 13, () => FRAME_HEADER_BYTES - 1];
      const runs = upTo(frames).map((i) => () => survive({ [direction]: flip(spots[i % spots.length], i) }));
      const results = await all(runs);
      expect(results).not.toContain("cancelled");
      expect(results).toContain("failed");
    },
  );

  it("ends in the middle of a frame is given up", async () => {
    const [frames] = await framesOf();
    const half = (index: number) => (frame: Buffer, i: number) =>
      i === index ? frame.subarray(0, frame.length >> 1) : frame;
    // What follows is taken for the rest of the frame, so its checksum is wrong.
    const results = await all([1, frames >> 1, frames - 2].map((i) => () => survive({ toDestination: half(i) })));
    expect(results).not.toContain("completed");
  });

  it.each([
    ["damaged bytes", (frame: Buffer) => Buffer.concat([frame, Buffer.alloc(FRAME_HEADER_BYTES, 7)])],
    ["half a frame", (frame: Buffer) => Buffer.concat([frame, frame.subarray(0, 20)])],
  ])("carries RUNNING with %s right behind it knows that the machine runs at the destination", async (_, damage) => {
    const pair = await loopback({
      damage: { toSource: (frame) => (says(frame, "RUNNING") ? damage(frame) : frame) },
    });
    try {
      const report = await pair.migrate();
      // What is lost is the proof, not the machine.
      expect(report).toMatchObject({ result: "completed", verified: null, error: { code: expect.any(String) } });
      expect(pair.witness.running).toEqual(["destination"]);
      expect(pair.witness.violations).toEqual([]);
    } finally {
      await pair.close();
    }
  });

  /** READY with the root of another table of page digests. */
  const otherRoot = (frame: Buffer) =>
    says(frame, "READY")
      ? reworded(frame, /[0-9a-f]{64}/, (root) => (root.startsWith("0") ? "1" : "0") + root.slice(1))
      : frame;

  it("brings page digests that are not those of READY verifies nothing", async () => {
    const pair = await loopback({ damage: { toSource: otherRoot } });
    try {
      const report = await pair.migrate();
      expect(report).toMatchObject({ result: "completed", verified: null, error: { code: "BAD_DIGESTS" } });
    } finally {
      await pair.close();
    }
  });

  it("brings page digests that are not those of READY fails a migration that is verified first", async () => {
    const pair = await loopback({ damage: { toSource: otherRoot } });
    try {
      const report = await pair.migrate({ verify: "before" });
      expect(report).toMatchObject({ result: "failed", verified: null, error: { code: "BAD_DIGESTS" } });
      expect(pair.source.runsFreely).toBe(true);
      expect((await pair.received).outcome).toBe("discarded");
    } finally {
      await pair.close();
    }
  });
});
