import { describe, expect, it } from "vitest";
import { MiB } from "../../memory/address.js";
import { fillMemory } from "../../memory/fill.js";
import { createGuestMemory } from "../../memory/guest-memory.js";
import { zeroShare } from "./zero-share.js";

describe("the share of zero pages", () => {
  it.each([0, 0.25, 0.5, 0.9, 1])("of memory filled to %d is found to within 3 %%", (fill) => {
    const memory = createGuestMemory(128 * MiB);
    fillMemory(memory, fill, 7);
    expect(Math.abs(zeroShare(memory) - (1 - fill))).toBeLessThan(0.03);
  });
});
