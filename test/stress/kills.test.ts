import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { DirtmapError } from "../../src/errors.js";
import { type Decision, sendDecision } from "../../src/migration/decision.js";
import { journalOf, readJournal, type Side } from "../../src/migration/journal.js";
import { listJournals } from "../../src/migration/journals.js";
import { Random } from "../../tools/random.js";
import { Child } from "../support/child.js";
import { statesOf } from "../support/journal-states.js";
import { pause } from "../support/machines.js";
import { forEachSeed } from "../support/seed-range.js";

/*
 * Real migrations between two processes, of which one is killed or stopped at a random moment, while an operator who keeps
 * to the rules decides at random moments, too. Whatever happens, two machines never run at a time, and what is left can be
 * resolved with `resume` or `abort`.
 *   npm run test:stress -- kills                            some fresh seeds
 *   DIRTMAP_SEEDS=1-1000 npm run test:stress -- kills       a night's worth; started again, it goes on where it was
 *   DIRTMAP_SEEDS=17 npm run test:stress -- kills           one seed again
 */

const PROGRAM = fileURLToPath(new URL("./kill-side.js", import.meta.url));
/** Fresh seeds; `npm run test:stress` sets more, for less than a minute. */
const FEW = Number(process.env.DIRTMAP_STRESS_SEEDS ?? 2);
/** For anything that must come, on a busy computer. */
const PATIENCE_MS = 180_000;
const NIGHT_MS = 12 * 3_600_000;

/** Phases of the source at which something happens, those around the handover more often. */
const MOMENTS = [
  [1, "connecting"],
  [2, "pre-copy"],
  [2, "pausing"],
  [3, "stop-copy"],
  [8, "handover"],
  [2, "running-at-destination"],
  [1, "auditing"],
] as const;

interface Plan {
  readonly victim: Side;
  readonly signal: "SIGKILL" | "SIGSTOP";
  readonly at: (typeof MOMENTS)[number][1];
  readonly afterMs: number;
  /** Of a stopped process: when it goes on; null: it is killed in the end. */
  readonly goesOnAfterMs: number | null;
  /** What the operator says without being asked, and how long after the machine was given up. */
  readonly operator: { readonly decision: Decision; readonly afterMs: number } | null;
}

function planOf(seed: number): Plan {
  const random = new Random(seed);
  const signal = random.pick(["SIGKILL", "SIGKILL", "SIGSTOP"] as const);
  return {
    victim: random.pick(["source", "destination"] as const),
    signal,
    at: random.weighted(MOMENTS),
    afterMs: random.weighted([
      [2, random.below(4)],
      [1, random.below(60)],
    ]),
    goesOnAfterMs: signal === "SIGSTOP" && random.chance(60) ? random.below(4000) : null,
    operator: random.chance(40)
      ? { decision: random.pick(["resume", "abort"] as const), afterMs: random.below(1500) }
      : null,
  };
}

/** Both sides of one migration, and what is known of them from outside. */
class Pair implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-kills-"));
  readonly destination: Child;
  source: Child | undefined;
  readonly dead = new Set<Side>();

  constructor() {
    this.destination = new Child(PROGRAM, "destination", this.folder, this.writtenFile("destination"));
  }

  async start(): Promise<void> {
    const { port } = await this.destination.said("port");
    this.source = new Child(PROGRAM, "source", this.folder, this.writtenFile("source"), String(port));
  }

  side(side: Side): Child {
    const child = side === "source" ? this.source : this.destination;
    if (child === undefined) throw new Error("it was not started");
    return child;
  }

  async kill(side: Side): Promise<void> {
    this.dead.add(side);
    await this.side(side)[Symbol.asyncDispose]();
  }

  writtenFile(side: Side): string {
    return join(this.folder, `${side}.written`);
  }

  /** When this side's machine wrote, by the clock that both share. */
  written(side: Side): bigint[] {
    let file: Buffer;
    try {
      file = readFileSync(this.writtenFile(side));
    } catch {
      return [];
    }
    return Array.from({ length: Math.floor(file.length / 8) }, (_, i) => file.readBigUInt64LE(i * 8));
  }

  /** The migration, once there is a journal. */
  get migration(): string | undefined {
    return readdirSync(this.folder).flatMap((file) => journalOf(file)?.migration ?? [])[0];
  }

  state(side: Side): string | undefined {
    const { migration } = this;
    return migration === undefined ? undefined : readJournal(this.folder, migration, side)?.state;
  }

  /** The destination does not run the machine and never will: what an operator must make sure of before `resume`. */
  get destinationIsOver(): boolean {
    const state = this.state("destination");
    return state === "discarded" || (this.dead.has("destination") && state !== "running");
  }

  /** Decides as an operator does: `resume` only when it is allowed. What is refused changes nothing. */
  async decide(decision: Decision): Promise<"done" | "refused"> {
    const { migration } = this;
    if (migration === undefined || (decision === "resume" && !this.destinationIsOver)) return "refused";
    try {
      await sendDecision(this.folder, migration, decision, 1000);
      return "done";
    } catch (error) {
      if (error instanceof DirtmapError) return "refused";
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const side of ["source", "destination"] as const) if (!this.dead.has(side)) await this.kill(side);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Waits for something, and says what never came. */
async function until<T>(what: string, look: () => T | undefined | false): Promise<T> {
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await pause(10)) {
    const found = look();
    if (found !== undefined && found !== false) return found;
  }
  throw new Error(`${what} did not come within ${PATIENCE_MS} ms`);
}

/** One run. Returns in words who was hit, and where the machine runs in the end. */
async function killed(seed: number): Promise<string> {
  const plan = planOf(seed);
  const { victim, signal, at, afterMs, goesOnAfterMs, operator } = plan;
  await using pair = new Pair();
  await pair.start();
  const source = pair.side("source");
  const isOver = () => source.process.exitCode !== null || source.process.signalCode !== null;

  let hit = false;
  const operating = (async () => {
    if (operator === null) return "refused" as const;
    // In a phase without a decision to make it is refused; so it is thrown in from the start of the handover on.
    await until(
      "the handover, or the end",
      () => source.has("phase", "handover") || source.has("result") || isOver() || hit,
    );
    await pause(operator.afterMs);
    return await pair.decide(operator.decision);
  })();
  // It is awaited later.
  operating.catch(() => {});

  await until(`phase ${at}, or the end`, () => source.has("phase", at) || source.has("result") || isOver());
  await pause(afterMs);
  hit = true;
  if (signal === "SIGKILL") await pair.kill(victim);
  else {
    pair.side(victim).kill("SIGSTOP");
    if (goesOnAfterMs !== null) {
      await pause(goesOnAfterMs);
      pair.side(victim).kill("SIGCONT");
    }
  }
  const saidWithoutBeingAsked = await operating;
  // A process that stands still for good: the operator makes sure that it never goes on.
  if (signal === "SIGSTOP" && goesOnAfterMs === null) await pair.kill(victim);

  // Each side ends up somewhere without help, apart from a source that waits for the operator.
  await until(
    "an end of the source",
    () => pair.dead.has("source") || source.has("result") || source.has("phase", "indeterminate"),
  );
  await until("an end of the destination", () => pair.dead.has("destination") || pair.destination.has("outcome"));

  let aborted = saidWithoutBeingAsked === "done" && operator?.decision === "abort";
  const waiting = listJournals(pair.folder).find(({ side, standing }) => side === "source" && standing === "waits");
  if (waiting !== undefined && !source.has("result")) {
    // What the operator would do: look at the destination, then say the one thing that is true.
    const resumes = pair.destinationIsOver && !pair.dead.has("source");
    const done = await pair.decide(resumes ? "resume" : "abort");
    aborted ||= !resumes;
    // Refused only where it was settled in the meantime.
    if (done === "refused") await until("an answer of its own", () => pair.state("source") !== "given-up");
  } else if (waiting !== undefined) {
    throw new Error(`the source has ended with '${waiting.says}'`);
  }
  return `${victim} ${signal === "SIGKILL" ? "killed" : "stopped"}, ${await runsAt(pair, aborted)}`;
}

/** Checks all that must hold in the end, and returns where the machine runs. */
async function runsAt(pair: Pair, aborted: boolean): Promise<string> {
  const source = pair.side("source");
  if (!pair.dead.has("source")) await until("the source's result", () => source.has("result"));
  const { migration } = pair;
  if (migration !== undefined) {
    for (const side of ["source", "destination"] as const) {
      if (pair.state(side) !== undefined) expect(LEGAL[side]).toContain(statesOf(pair.folder, migration, side).join());
    }
    expect(listJournals(pair.folder).filter(({ standing }) => standing === "waits")).toEqual([]);
  }
  const runs = (side: Side) => {
    // A source without a journal never began to migrate.
    const state = pair.state(side) ?? (side === "source" ? "running" : "none");
    return !pair.dead.has(side) && state === "running";
  };
  for (const side of ["source", "destination"] as const) {
    const before = pair.written(side).length;
    if (runs(side)) await until(`a write at the ${side}`, () => pair.written(side).length > before);
    else {
      await pause(50);
      // What was written before is seen a moment later.
      const later = pair.written(side).length;
      await pause(50);
      expect(pair.written(side).length, `writes of a machine that doesn't run, at the ${side}`).toBe(later);
    }
  }
  // By the stamps: no write of the source's machine lies between two of the destination's.
  const there = pair.written("destination");
  const [first, last] = [there.at(0) ?? 0n, there.at(-1) ?? 0n];
  const between = pair.written("source").filter((ns) => ns > first && ns < last);
  expect(between, "writes of the source's machine while the destination's ran").toEqual([]);
  expect(runs("source") && runs("destination"), "both sides have the machine").toBe(false);
  // The machine is lost with the process that had it, or by the operator's word, and by nothing else.
  const diedThere = pair.dead.has("destination") && pair.state("destination") === "running";
  if (!pair.dead.has("source") && !aborted && !diedThere) {
    expect(runs("source") || runs("destination"), "a side runs the machine").toBe(true);
  }
  if (source.has("result", "completed")) expect((await source.said("result")).verified ?? true).toBe(true);
  return runs("source") ? "source runs" : runs("destination") ? "destination runs" : "nobody runs";
}

/** What each side may have recorded, in order, when all is over. */
const LEGAL: Readonly<Record<Side, readonly string[]>> = {
  source: ["running", "running,running", "running,given-up,gone", "running,given-up,running"],
  destination: [
    "loading",
    "loading,ready",
    "loading,discarded",
    "loading,ready,discarded",
    "loading,ready,running",
    "loading,ready,running,discarded",
  ],
};

it(
  "a migration of which one side is killed or stopped at a random moment ends with one machine, or none",
  async () => {
    await forEachSeed("kills", FEW, killed);
  },
  NIGHT_MS,
);
