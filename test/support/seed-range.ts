import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { z } from "zod";

/*
 * Random runs by seed. `DIRTMAP_SEEDS=FROM-TO` (both included) asks a driver for these seeds, `DIRTMAP_SEEDS=SEED` for
 * one; without it a driver runs a few fresh ones. A range keeps its progress in a file: the same command, started again
 * after it was interrupted, goes on with the seed that was under way. A failing seed does not end a range.
 */

/** Seeds are 31-bit: each is a valid state for the generators in random.ts. */
const MAX_SEED = 0x7fffffff;

/** Both ends are included. */
export interface SeedRange {
  readonly from: number;
  readonly to: number;
}

export interface SeedRuns {
  /** How many seeds ended in which way, by the word that the run returned. */
  readonly counts: Readonly<Record<string, number>>;
  readonly failed: readonly { readonly seed: number; readonly error: string }[];
}

const progressSchema = z.strictObject({
  /** The seed to go on with. */
  next: z.int(),
  counts: z.record(z.string(), z.int()),
  failed: z.array(z.strictObject({ seed: z.int(), error: z.string() })),
});
type Progress = z.output<typeof progressSchema>;

/** Parses `FROM-TO` or `SEED`. @throws Error for anything else */
export function parseSeeds(text: string): SeedRange {
  const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(text) ?? [];
  const from = Number(first);
  const to = Number(last ?? first);
  if (!(from >= 1 && to >= from && to <= MAX_SEED)) {
    throw new Error(`DIRTMAP_SEEDS=${text}: expected FROM-TO or SEED, from 1 to ${MAX_SEED}`);
  }
  return { from, to };
}

/**
 * Runs a driver once per seed, one after another, and prints the counts.
 * @param driver names the progress file and the command that replays a seed: the test file's name up to the first dot
 * @param few how many fresh seeds run if DIRTMAP_SEEDS is not set
 * @param run returns in a word how the run ended; what it throws fails the seed
 * @throws Error that names each failing seed and the command that replays it
 */
export async function forEachSeed(
  driver: string,
  few: number,
  run: (seed: number) => Promise<string>,
  { env = process.env, print = (line: string): void => void process.stderr.write(`${line}\n`) } = {},
): Promise<SeedRuns> {
  const asked = env.DIRTMAP_SEEDS === undefined ? undefined : parseSeeds(env.DIRTMAP_SEEDS);
  const range = asked ?? fresh(few);
  const { from, to } = range;
  // A seed that is replayed, or that nobody will ask for again, has no progress to keep.
  const file = asked === undefined || from === to ? undefined : progressFile(driver, range, env);
  const progress = (file === undefined ? undefined : readProgress(file)) ?? { next: from, counts: {}, failed: [] };
  if (progress.next > from) print(`${driver}: goes on with seed ${progress.next} of ${from}-${to} (${file})`);
  while (progress.next <= to) {
    const seed = progress.next;
    let outcome = "failed";
    try {
      outcome = await run(seed);
    } catch (error) {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      progress.failed.push({ seed, error: text });
      print(`${driver}: seed ${seed} failed; replay it with: ${replay(driver, seed)}\n${text}`);
    }
    progress.counts[outcome] = (progress.counts[outcome] ?? 0) + 1;
    progress.next = seed + 1;
    if (file !== undefined) writeProgress(file, progress);
  }
  if (file !== undefined) rmSync(file, { force: true });
  const { counts, failed } = progress;
  const words = Object.entries(counts).map(([word, count]) => `${word} ${count}`);
  print(`${driver}: seeds ${from}-${to}: ${words.join(", ")}`);
  if (failed.length > 0) {
    throw new Error(failed.map(({ seed, error }) => `${replay(driver, seed)}\n${error}`).join("\n\n"));
  }
  return { counts, failed };
}

function replay(driver: string, seed: number): string {
  return `DIRTMAP_SEEDS=${seed} npm run test:stress -- ${driver}`;
}

function fresh(count: number): SeedRange {
  const from = 1 + Math.floor(Math.random() * (MAX_SEED - count));
  return { from, to: from + count - 1 };
}

/** In `$XDG_CACHE_HOME/dirtmap/seeds`, or in `~/.cache/dirtmap/seeds`. */
function progressFile(driver: string, { from, to }: SeedRange, env: NodeJS.ProcessEnv): string {
  const cache = env.XDG_CACHE_HOME ?? join(homedir(), ".cache");
  return join(cache, "dirtmap", "seeds", `${driver}.${from}-${to}.json`);
}

function readProgress(file: string): Progress | undefined {
  try {
    return progressSchema.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new Error(`${file} is no progress file: remove it`, { cause: error });
  }
}

function writeProgress(file: string, progress: Progress): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(`${file}.new`, JSON.stringify(progress));
  renameSync(`${file}.new`, file);
}
