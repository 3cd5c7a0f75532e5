import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { interleave, type Summary, summarize } from "../src/evidence/statistics.js";

/*
 * What each of the package's doors costs to import: processor time and memory of a process that does nothing else, beside
 * one that imports nothing.
 */

export interface DoorRow {
  readonly bench: "doors";
  /** As it is imported; null: bare Node. */
  readonly door: string | null;
  /** User and system time of the process, all threads, in milliseconds. */
  readonly cpuMs: Summary;
  /** The most memory that was resident at once. */
  readonly residentBytes: Summary;
  /** Processor time over bare Node's, of the medians. The main door's aim is at most 3. */
  readonly overBare: number;
}

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** The doors of package.json. */
function doors(): string[] {
  const { exports } = JSON.parse(readFileSync(`${ROOT}package.json`, "utf8")) as { exports: Record<string, unknown> };
  return Object.keys(exports)
    .filter((path) => !path.endsWith(".json"))
    .map((path) => `dirtmap${path.slice(1)}`);
}

/** One process that imports a door, or nothing, and tells what it took. */
function start(door: string | null): { cpuMs: number; residentBytes: number } {
  const program =
    `${door === null ? "" : `await import("${door}");`}` +
    "const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage();" +
    "process.stdout.write(JSON.stringify({ cpuMs: (userCPUTime + systemCPUTime) / 1000, residentBytes: maxRSS * 1024 }));";
  const { stdout, stderr, status } = spawnSync(process.execPath, ["--input-type=module", "--eval", program], {
    cwd: ROOT,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`${door ?? "Node"} did not start: ${stderr}`);
  return JSON.parse(stdout) as { cpuMs: number; residentBytes: number };
}

/** Imports each door in turn, in processes of their own. @param turns of each */
export async function run({ turns = 7 }: { turns?: number } = {}): Promise<DoorRow[]> {
  const ways = [null, ...doors()];
  const starts = await interleave(
    ways.map((door) => async () => start(door)),
    turns,
  );
  const rows = ways.map((door, index) => ({
    bench: "doors" as const,
    door,
    cpuMs: summarize(starts[index].map(({ cpuMs }) => cpuMs)),
    residentBytes: summarize(starts[index].map(({ residentBytes }) => residentBytes)),
  }));
  return rows.map((row) => ({ ...row, overBare: row.cpuMs.median / rows[0].cpuMs.median }));
}
