import { GATHER, type PageKernels } from "../pages.js";
import { xxh3 } from "./xxh3.js";

/*
 * The kernels over pages in plain TypeScript, as clear as can be: what the tests compare assembly/pages.ts with.
 */

const PAGE = 4096;
/** The twins over an arena's bytes. */
export function pageTwins(memory: Uint8Array): PageKernels {
  const view = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  const pageAt = (at: number) => memory.subarray(at, at + PAGE);
  const isZero = (at: number) => pageAt(at).every((byte) => byte === 0);
  const getWord = (at: number) => view.getUint32(at, true);
  const setWord = (at: number, value: number) => view.setUint32(at, value, true);
  const runsOf = (runs: number, count: number) =>
    Array.from({ length: count }, (_, i) => {
      const word = getWord(runs + i * 8 + 4);
      return { first: getWord(runs + i * 8), pages: word >>> 1, zero: (word & 1) === 1 };
    });

  return {
    gather(state, bitmap, page, end) {
      const word = (name: keyof typeof GATHER) => getWord(state + GATHER[name] * 4);
      const add = (name: keyof typeof GATHER) => setWord(state + GATHER[name] * 4, word(name) + 1);
      for (; page < end; page++) {
        if (((getWord(bitmap + (page >>> 5) * 4) >>> (page & 31)) & 1) === 0) continue;
        const zero = isZero(page * PAGE);
        if (!zero && word("dataPages") === word("maxDataPages")) return page;
        const last = runsOf(word("runsAt"), word("runs")).at(-1);
        const runAt = word("runsAt") + word("runs") * 8;
        if (last !== undefined && last.zero === zero && last.first + last.pages === page) {
          setWord(runAt - 4, (last.pages + 1) * 2 + Number(zero));
        } else {
          if (word("runs") === word("maxRuns")) return page;
          setWord(runAt, page);
          setWord(runAt + 4, 2 + Number(zero));
          add("runs");
        }
        if (zero) {
          add("zeroPages");
          continue;
        }
        const staged = word("dataAt") + word("dataPages") * PAGE;
        memory.copyWithin(staged, page * PAGE, (page + 1) * PAGE);
        view.setBigUint64(word("digestsAt") + word("dataPages") * 8, xxh3(pageAt(staged)), true);
        add("dataPages");
      }
      return end;
    },

    checkRuns(runs, count, ramPages) {
      const table = runsOf(runs, count);
      const all = table.reduce((sum, { pages }) => sum + pages, 0);
      if (all > ramPages || table.some(({ first, pages }) => pages === 0 || first + pages > ramPages)) return -1;
      return table.reduce((sum, { pages, zero }) => sum + (zero ? 0 : pages), 0);
    },

    pagesInRuns: (runs, count) => runsOf(runs, count).reduce((sum, { pages }) => sum + pages, 0),

    storeFrame(runs, count, digests, staging, table) {
      let data = 0;
      for (const { first, pages, zero } of runsOf(runs, count)) {
        if (zero) memory.fill(0, first * PAGE, (first + pages) * PAGE);
        else if (staging !== 0) memory.copyWithin(first * PAGE, staging + data * PAGE, staging + (data + pages) * PAGE);
        for (let page = first; page < first + pages; page++) {
          const digest = xxh3(pageAt(page * PAGE));
          view.setBigUint64(table + page * 8, digest, true);
          if (!zero && digest !== view.getBigUint64(digests + data * 8, true)) return page;
          if (!zero) data++;
        }
      }
      return -1;
    },

    digestPages(page, end, table) {
      for (; page < end; page++) view.setBigUint64(table + page * 8, xxh3(pageAt(page * PAGE)), true);
    },
  };
}
