import { afterAll, describe, expect, it } from "vitest";
import { EmulatedMock } from "./emulated-rig.js";
import { DEFAULT_KIND, HUGE_KIND, type MockKind, PAGES_KIND } from "./mock-kind.js";
import { MUTANTS, unadjusted } from "./mutants.js";
import { describeDifference, type MakeSides, runSeed } from "./sequence.js";
import { ServedRig } from "./served-rig.js";
import { shrink } from "./shrink.js";
import { type Rig, Side } from "./side.js";

/*
 * The differential test compares two hosts. Here it compares the emulated one with itself, to see that it is quiet where
 * there is nothing to find, and with itself made wrong, to see that it finds that; and with the vfio-user host, whose
 * iommufd is the same before other IOMMUs.
 */

/** One for each side: a port is one device's. */
const mocks = [DEFAULT_KIND, HUGE_KIND, PAGES_KIND].flatMap((kind) => [new EmulatedMock(kind), new EmulatedMock(kind)]);
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

describe("the differential test, between the emulated and the vfio-user host", () => {
  const sequences = Number(process.env.DIRTMAP_SEQUENCES ?? 300);

  /** @param mutate what is made of the vfio-user host */
  function hosts(mutate: (rig: Rig) => Rig): MakeSides {
    return async (kind) => {
      const mock = mocks.find((one) => one.kind === kind);
      if (mock === undefined) throw new Error(`nothing has ${kind.name} page tables`);
      return [new Side(unadjusted(mock.open())), new Side(mutate(new ServedRig(kind)))];
    };
  }

  it("finds no difference: both answer alike, and served devices are told what is mapped", async () => {
    const make = hosts((rig) => rig);
    const found = await find(make, PAGES_KIND, sequences);
    const text = found === null ? "" : describeDifference(await shrink(make, found.difference));
    expect(text, `the seed is ${found?.seed}`).toBe("");
  });

  it.each(MUTANTS)("finds %s", async (_name, mutate) => {
    expect(await find(hosts(mutate), PAGES_KIND, 200)).not.toBeNull();
  });
});
