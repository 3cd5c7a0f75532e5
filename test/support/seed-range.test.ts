import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { forEachSeed, parseSeeds } from "./seed-range.js";

let cache = "";
let printed: string[] = [];
beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), "dirtmap-seeds-"));
  printed = [];
});
afterEach(() => rmSync(cache, { recursive: true, force: true }));

const io = (seeds?: string) => ({
  env: { XDG_CACHE_HOME: cache, ...(seeds === undefined ? {} : { DIRTMAP_SEEDS: seeds }) },
  print: (line: string) => void printed.push(line),
});
/** A run that notes its seed, and ends as `outcome` says. */
const noting =
  (seen: number[], outcome = (_seed: number) => "fine") =>
  async (seed: number) => {
    seen.push(seed);
    return outcome(seed);
  };
const progressFiles = () => {
  const folder = join(cache, "dirtmap", "seeds");
  return existsSync(folder) ? readdirSync(folder) : [];
};

describe("a range of seeds", () => {
  it("is FROM-TO with both ends, or one seed", () => {
    expect(parseSeeds("3-7")).toEqual({ from: 3, to: 7 });
    expect(parseSeeds("42")).toEqual({ from: 42, to: 42 });
  });

  it.each(["", "0", "7-3", "x", "1-", "1-99999999999", "-5"])("is not '%s'", (text) => {
    expect(() => parseSeeds(text)).toThrow(/expected FROM-TO or SEED/);
  });

  it("runs each seed once, in order, and counts how they ended", async () => {
    const seen: number[] = [];
    const runs = await forEachSeed(
      "driver",
      1,
      noting(seen, (seed) => (seed % 2 ? "odd" : "even")),
      io("1-5"),
    );
    expect(seen).toEqual([1, 2, 3, 4, 5]);
    expect(runs.counts).toEqual({ odd: 3, even: 2 });
    expect(printed.at(-1)).toBe("driver: seeds 1-5: odd 3, even 2");
    expect(progressFiles()).toEqual([]);
  });

  it("goes on after a failing seed, and names the command that replays it", async () => {
    const seen: number[] = [];
    const running = forEachSeed(
      "driver",
      1,
      async (seed) => {
        seen.push(seed);
        if (seed === 2) throw new Error("two machines ran");
        return "fine";
      },
      io("1-3"),
    );
    await expect(running).rejects.toThrow(/DIRTMAP_SEEDS=2 npm run test:stress -- driver\n.*two machines ran/);
    expect(seen).toEqual([1, 2, 3]);
  });

  it("that was interrupted goes on with the seed that was under way, with its counts", async () => {
    void forEachSeed("driver", 1, (seed) => (seed < 3 ? Promise.resolve("fine") : new Promise(() => {})), io("1-4"));
    while (progressFiles().length === 0) await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
    const seen: number[] = [];
    const runs = await forEachSeed("driver", 1, noting(seen), io("1-4"));
    expect(seen).toEqual([3, 4]);
    expect(runs.counts).toEqual({ fine: 4 });
    expect(progressFiles()).toEqual([]);
  });

  it("is a few fresh ones if nobody asks for any", async () => {
    const seen: number[] = [];
    await forEachSeed("driver", 3, noting(seen), io());
    expect(seen).toEqual([seen[0], seen[0] + 1, seen[0] + 2]);
  });
});
