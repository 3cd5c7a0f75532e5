import type { Iommufd } from "../../src/host/host.js";
import { type ErrnoName, isErrno, UapiError } from "../../src/uapi/errno.js";
import type { Rig } from "./side.js";

/*
 * Hosts that are wrong in one point each, to see that the differential test finds it.
 */

/** What a mutant is, and how it is made of a host. */
export type Mutant = readonly [name: string, make: (rig: Rig) => Rig];

export const MUTANTS: readonly Mutant[] = [
  [
    "a wrong errno",
    wrongIommufd((iommufd) => ({
      map: async (...args) => {
        try {
          return await iommufd.map(...args);
        } catch (error) {
          throw isErrno(error, "EEXIST") ? refusal("EINVAL") : error;
        }
      },
    })),
  ],
  [
    "a bit that is off by one",
    wrongRead(async (read, query) => {
      const { into } = query;
      const before = into.words.slice();
      await read(query);
      for (let bit = into.bits - 1; bit > 0; bit--) {
        const had = (before[bit >>> 5] >>> (bit & 31)) & 1;
        if (had === 1 || !into.get(bit) || into.get(bit - 1)) continue;
        into.set(bit - 1);
        into.words[bit >>> 5] &= ~(1 << (bit & 31));
      }
    }),
  ],
  ["a read that never clears", wrongRead((read, query) => read({ ...query, clear: false }))],
  [
    "an unmap that returns the bytes it was asked for",
    wrongIommufd((iommufd) => ({
      unmap: async (ioas, iova, length) => {
        await iommufd.unmap(ioas, iova, length);
        return length;
      },
    })),
  ],
  [
    "a destroy that says it has let go of what is used",
    wrongIommufd((iommufd) => ({
      destroy: (id) =>
        iommufd.destroy(id).catch((error) => {
          if (!isErrno(error, "EBUSY")) throw error;
        }),
    })),
  ],
];

/** The same host, but with what it reports itself, instead of what Linux would have; and asked what Linux can't be asked. */
export function unadjusted(rig: Rig): Rig {
  return withOverrides(rig, {
    getDirtyBitmap: async (hwpt, query) => {
      await rig.iommufd.getDirtyBitmap(hwpt, query);
    },
    hangsLinux: async () => false,
  });
}

function wrongIommufd(overrides: (iommufd: Iommufd) => Partial<Iommufd>): (rig: Rig) => Rig {
  return (rig) => withOverrides(rig, { iommufd: withOverrides(rig.iommufd, overrides(rig.iommufd)) });
}

type Query = Parameters<Rig["getDirtyBitmap"]>[1];

function wrongRead(read: (right: (query: Query) => Promise<void>, query: Query) => Promise<void>): (rig: Rig) => Rig {
  return (rig) =>
    withOverrides(rig, { getDirtyBitmap: (hwpt, query) => read((own) => rig.getDirtyBitmap(hwpt, own), query) });
}

/** An object that answers for another, except with these. */
function withOverrides<T extends object>(target: T, overrides: Partial<T>): T {
  return new Proxy(target, {
    get(_, name) {
      const own = name in overrides;
      const value: unknown = Reflect.get(own ? overrides : target, name);
      return typeof value === "function" ? value.bind(own ? overrides : target) : value;
    },
  });
}

function refusal(code: ErrnoName): UapiError {
  return new UapiError(code, { syscall: "mutant", attempted: "answer wrongly" });
}
