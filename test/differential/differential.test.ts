import { afterAll, describe, expect, it } from "vitest";
import type { Iommufd } from "../../src/host/host.js";
import { type ErrnoName, UapiError } from "../../src/uapi/errno.js";
import { EmulatedMock } from "./emulated-rig.js";
import { DEFAULT_KIND, HUGE_KIND, type MockKind } from "./mock-kind.js";
import { describeDifference, type MakeSides, runSeed } from "./sequence.js";
import { shrink } from "./shrink.js";
import { type Rig, Side } from "./side.js";

/*
 * The differential test compares two hosts. Here it compares the emulated one with itself, to see that it is quiet where
 * there is nothing to find, and with itself made wrong, to see that it finds that.
 */

const mocks = { default: new EmulatedMock(DEFAULT_KIND), huge: new EmulatedMock(HUGE_KIND) };
afterAll(() => Promise.all(Object.values(mocks).map((mock) => mock[Symbol.asyncDispose]())));

/** The same host twice, the second with something different. */
function against(mutate: (rig: Rig) => Rig): MakeSides {
  return async (kind) => {
    const plain: Rig = mocks[kind.name].open();
    const other: Rig = mocks[kind.name].open();
    return [new Side(quiet(plain)), new Side(mutate(quiet(other)))];
  };
}

/** What this host reports, instead of what Linux would have. */
function quiet(rig: Rig): Rig {
  return withOverrides(rig, {
    getDirtyBitmap: async (hwpt, query) => {
      await rig.iommufd.getDirtyBitmap(hwpt, query);
    },
  });
}

/** An object that answers for another, except with these. */
function withOverrides<T extends object>(target: T, overrides: Partial<T>): T {
  return new Proxy(target, {
    get(_, name) {
      const value = name in overrides ? overrides[name as keyof T] : Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(name in overrides ? overrides : target) : value;
    },
  });
}

/** A host whose iommufd answers wrongly in one call. */
function wrong(overrides: (iommufd: Iommufd) => Partial<Iommufd>): (rig: Rig) => Rig {
  return (rig) => {
    const iommufd = withOverrides(rig.iommufd, overrides(rig.iommufd));
    return quiet(withOverrides(rig, { iommufd }));
  };
}

function refusal(code: ErrnoName): UapiError {
  return new UapiError(code, { syscall: "mutant", attempted: "answer wrongly" });
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
      60,
    );
    expect(found === null ? null : describeDifference(found.difference)).toBeNull();
  });

  it.each<[string, (rig: Rig) => Rig]>([
    [
      "a wrong errno",
      wrong((iommufd) => ({
        map: async (...args) => {
          try {
            return await iommufd.map(...args);
          } catch (error) {
            if (error instanceof UapiError && error.code === "EEXIST") throw refusal("EINVAL");
            throw error;
          }
        },
      })),
    ],
    [
      "a bit that is off by one",
      wrong((iommufd) => ({
        getDirtyBitmap: async (hwpt, query) => {
          const { into } = query;
          const before = into.words.slice();
          const answer = await iommufd.getDirtyBitmap(hwpt, query);
          for (let bit = into.bits - 1; bit > 0; bit--) {
            const had = (before[bit >>> 5] >>> (bit & 31)) & 1;
            if (had === 0 && into.get(bit) && !into.get(bit - 1)) {
              into.set(bit - 1);
              into.words[bit >>> 5] &= ~(1 << (bit & 31));
            }
          }
          return answer;
        },
      })),
    ],
    [
      "a read that never clears",
      wrong((iommufd) => ({
        getDirtyBitmap: (hwpt, query) => iommufd.getDirtyBitmap(hwpt, { ...query, clear: false }),
      })),
    ],
    [
      "an unmap that returns the bytes it was asked for",
      wrong((iommufd) => ({
        unmap: async (ioas, iova, length) => {
          await iommufd.unmap(ioas, iova, length);
          return length;
        },
      })),
    ],
    [
      "a destroy that lets go of what is used",
      wrong((iommufd) => ({
        destroy: (id) =>
          iommufd.destroy(id).catch((error) => {
            if (!(error instanceof UapiError && error.code === "EBUSY")) throw error;
          }),
      })),
    ],
  ])("finds %s, and shrinks the sequence", async (_name, mutate) => {
    const make = against(mutate);
    const found = await find(make, kind, 200);
    expect(found).not.toBeNull();
    if (found === null) return;
    const small = await shrink(make, found.difference);
    expect(small.steps.length).toBeLessThanOrEqual(10);
    expect(describeDifference(small)).toContain("emulated ->");
  });
});
