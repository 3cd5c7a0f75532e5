import { expect, it } from "vitest";
import { runGuest } from "../../fuzz/guest/fuzz.js";
import { GUEST_MODELS } from "../../fuzz/guest/side.js";
import { forEachSeed } from "../../support/seed-range.js";

/*
 * A thousand operations of a guest per seed and model: 1000 seeds are a million of each model.
 */

it("no guest brings its device down, or has it write where it may not", async () => {
  const { counts } = await forEachSeed("guest", 2, async (seed) => {
    for (const model of GUEST_MODELS) await runGuest({ model, seed });
    return "ok";
  });
  expect(counts.failed ?? 0).toBe(0);
}, 86_400_000);
