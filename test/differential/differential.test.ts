import { afterAll, describe, expect, it } from "vitest";
import { EmulatedMock } from "./emulated-rig.js";
import { DEFAULT_KIND, HUGE_KIND, type MockKind } from "./mock-kind.js";
import { MUTANTS, unadjusted } from "./mutants.js";
import { describeDifference, type MakeSides, runSeed } from "./sequence.js";
import { shrink } from "./shrink.js";
import { type Rig, Side } from "./side.js";

/*
 * The differential test compares two hosts. Here it compares the emulated one with itself, to see that it is quiet where
 * there is nothing to find, and with itself made wrong, to see that it finds that.
 */

/** One for each side: a port is one device's. */
const mocks = [DEFAULT_KIND, HUGE_KIND].flatMap((kind) => [new EmulatedMock(kind), new EmulatedMock(kind)]);
afterAll(() => Promise.all(mocks.map((mock) => mock[Symbol.asyncDispose]())));

/** The same host twice, the second with something different. */
function against(mutate: (rig: Rig) => Rig): MakeSides {
  return async (kind) => {
    const [one, other] = mocks.filter((mock) => mock.kind === kind).map((mock) => unadjusted(mock.open()));
    return [new Side(one), new Side(mutate(other))];
  };
}

async function find(make: MakeSides, kind: MockKind, sequences: number) {
  for (let seed = 1; seed <= sequences; seed++) {
    const difference = await runSeed(make, kind, seed);
    if (difference !== null) return { seed, difference };
  }
  return null;
}

describe.each([DEFAULT_KIND, HUGE_KIND])("the differential test, on the $name page tables", (kind) => {
  it("finds no difference between a host and itself", async () => {
    const found = await find(
      against((rig) => rig),
      kind,
      40,
    );
    expect(found === null ? null : describeDifference(found.difference)).toBeNull();
  });

  it.each(MUTANTS)("finds %s, and shrinks the sequence", async (_name, mutate) => {
    const make = against(mutate);
    const found = await find(make, kind, 200);
    expect(found).not.toBeNull();
    if (found === null) return;
    const small = await shrink(make, found.difference);
    expect(small.steps.length).toBeLessThanOrEqual(10);
    expect(describeDifference(small)).toContain("emulated ->");
  });
});
