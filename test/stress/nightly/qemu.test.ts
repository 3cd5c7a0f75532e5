import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it, test } from "vitest";
import { journalOf, readJournal, type Side } from "../../../src/migration/journal.js";
import { type ListedJournal, listJournals } from "../../../src/migration/journals.js";
import type { EventStream } from "../../../src/qemu/qmp/event-stream.js";
import type { Qemu } from "../../../src/qemu/qmp/qemu.js";
import { Random } from "../../../tools/random.js";
import { MissingError } from "../../../tools/vm/missing.js";
import {
  COMPLAINT,
  connect,
  counts,
  DISKS,
  endLoad,
  LOAD_BLOCK_BYTES,
  LOAD_BLOCKS,
  type Place,
  Places,
  pause,
  root,
  runDirtmap,
  SECOND,
  startLoad,
} from "../../interop/guest-places.js";
import { findShellImage, type ShellImage } from "../../interop/guest-shell.js";
import { Child } from "../../support/child.js";
import { forEachSeed } from "../../support/seed-range.js";

/*
 * Moves of a real guest of QEMU of which one process is killed, or stands still for a while, at a random moment: a `dirtmap`, a
 * QEMU, or a server of a device. Whatever happens, the guest never runs twice; where it runs nowhere, the operator's command brings
 * it back; and its disks are whole. A guest is lost only with the QEMU that has it, and a disk only with the server that has it.
 *   DIRTMAP_SEEDS=1-200 npm run test:stress -- qemu       a night's worth; started again, it goes on where it was
 *   DIRTMAP_SEEDS=17 npm run test:stress -- qemu          one seed again
 */

const PROGRAM = join(root, "bin/dirtmap.js");
const FEW = 1;
const NIGHT_MS = 12 * 3_600_000;
const PATIENCE_MS = 180_000;
/** The load runs on for this long where the guest ends up. */
const LOAD_MS = 1000;
/** How long a process that goes on is watched before it is looked what became of the guest. */
const AFTERMATH_MS = 2000;

const VICTIMS = [
  "migrate",
  "receive",
  "QEMU",
  "QEMU at the destination",
  "server",
  "server at the destination",
] as const;
type Victim = (typeof VICTIMS)[number];

/** What it is hit after. */
const MOMENTS = [
  [1, "start"],
  [2, "MIGRATION"],
  [4, "STOP"],
  [3, "given up"],
] as const;

/**
 * A process that stands still for longer than this delays the guest's requests by more than its driver waits for one: 5 s, as the
 * guest is told at its start, less what requests take on a busy machine. Complaints of the driver are due then. A guest whose
 * server does not answer QEMU for its 5 s may lose the device for good: QEMU ends the connection and makes no other.
 */
const HANG_THAT_SHOWS_MS = 3500;

interface Plan {
  readonly victim: Victim;
  readonly at: (typeof MOMENTS)[number][1];
  readonly afterMs: number;
  /** It stands still for so long, and then goes on; null: it is killed. */
  readonly stopMs: number | null;
  /** Of the server that is hit. */
  readonly disk: number;
  readonly tracker: "messages" | "device";
}

function planOf(seed: number): Plan {
  const random = new Random(seed);
  return {
    victim: random.pick(VICTIMS),
    at: random.weighted(MOMENTS),
    afterMs: random.weighted([
      [3, random.below(10)],
      [2, random.below(150)],
    ]),
    tracker: random.pick(["messages", "device"] as const),
    disk: random.below(DISKS.length),
    stopMs: random.chance(40)
      ? null
      : random.weighted([
          [3, random.below(1000)],
          [2, random.between(1000, 3000)],
          [2, random.between(5500, 9000)],
          [2, random.between(10_000, 35_000)],
          // Longer than every time limit of a migration.
          [1, random.between(65_000, 80_000)],
        ]),
  };
}

/** When a QEMU ran its guest, in milliseconds of QEMU's own clock, which is the host's. Open while it runs. */
interface Stretch {
  readonly from: number;
  until: number;
}

/** What one QEMU says of its guest, from now on. No change of its state is missed: QEMU tells each by an event. */
class Watched implements AsyncDisposable {
  readonly qemu: Qemu;
  readonly ran: Stretch[] = [];
  readonly #events: EventStream;
  readonly #watching: Promise<void>;

  private constructor(qemu: Qemu, running: boolean) {
    this.qemu = qemu;
    this.#events = qemu.events();
    if (running) this.ran.push({ from: 0, until: Number.POSITIVE_INFINITY });
    this.#watching = this.#watch().catch(() => this.#stands(Date.now()));
  }

  static async open(path: string): Promise<Watched> {
    const qemu = await connect(path);
    return new Watched(qemu, (await qemu.status()).running);
  }

  /** True while its QEMU says so, or where it does not answer for now, has said so last. */
  get runs(): boolean {
    return this.ran.at(-1)?.until === Number.POSITIVE_INFINITY;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.qemu[Symbol.asyncDispose]();
    await this.#watching;
  }

  async #watch(): Promise<void> {
    for await (const { name, at } of this.#events) {
      if (name === "RESUME" && !this.runs) this.ran.push({ from: at, until: Number.POSITIVE_INFINITY });
      if (name === "STOP") this.#stands(at);
    }
  }

  #stands(at: number): void {
    const last = this.ran.at(-1);
    if (last !== undefined) last.until = Math.min(last.until, at);
  }
}

/** One move, and what is known of it from outside. */
class Move implements AsyncDisposable {
  readonly here: Place;
  readonly there: Place;
  readonly journals: string;
  readonly receiving: Child;
  readonly watched: { readonly source: Watched; readonly destination: Watched };
  migrating: Child | undefined;
  /** What the operator was told. */
  readonly operator: string[] = [];
  readonly #plan: Plan;
  /** Resolves when a process that stands still goes on, and some time is over. */
  #goesOn: Promise<void> = Promise.resolve();

  private constructor(
    places: Places,
    parts: { here: Place; there: Place; watched: { source: Watched; destination: Watched }; plan: Plan },
  ) {
    this.here = parts.here;
    this.there = parts.there;
    this.watched = parts.watched;
    this.#plan = parts.plan;
    this.journals = join(places.folder, "journals");
    const args = ["--qmp", this.there.qmp, "--listen", "tcp://127.0.0.1:0", "--once", ...this.#common];
    this.receiving = new Child(PROGRAM, "receive", ...args);
  }

  static async begin(places: Places, plan: Plan): Promise<Move> {
    const here = await places.add();
    await startLoad(here);
    const there = await places.add();
    await (await connect(there.qmp))[Symbol.asyncDispose]();
    const watched = { source: await Watched.open(here.watched), destination: await Watched.open(there.watched) };
    return new Move(places, { here, there, watched, plan });
  }

  get #common(): string[] {
    return ["--journal", this.journals, "--qemu-address", `unix:${this.there.qmp}-stream`, "--json"];
  }

  /** Hits the victim at its moment, or once all is over. */
  async hit(): Promise<void> {
    const { at, afterMs, tracker, stopMs } = this.#plan;
    const { address } = await this.receiving.said("event", "listening");
    using events = this.watched.source.qemu.events();
    const trackers = [`disk=${tracker}`, `${SECOND}=${tracker}`].flatMap((each) => ["--tracker", each]);
    const to = ["--qmp", this.here.qmp, "--to", String(address), "--no-store"];
    const migrating = new Child(PROGRAM, "migrate", ...to, ...trackers, ...this.#common);
    this.migrating = migrating;
    const moment =
      at === "start"
        ? Promise.resolve()
        : at === "given up"
          ? until("the journal", () => this.state("source") === "given-up" || this.state("source") === "gone")
          : happened(events, at);
    await Promise.race([moment, migrating.ended]);
    await pause(afterMs);
    const victim = this.#victim();
    victim.kill(stopMs === null ? "SIGKILL" : "SIGSTOP");
    if (stopMs === null) return;
    this.#goesOn = pause(stopMs).then(async () => {
      victim.kill("SIGCONT");
      await pause(AFTERMATH_MS);
    });
  }

  #victim(): { kill(signal: NodeJS.Signals): void } {
    const { victim, disk } = this.#plan;
    if (victim === "migrate") return this.migrating as Child;
    if (victim === "receive") return this.receiving;
    const place = victim.endsWith("destination") ? this.there : this.here;
    return victim.startsWith("QEMU") ? place.guest : place.servers[disk];
  }

  /** What everyone said, for a run that went wrong. */
  get transcript(): string {
    const of = (place: Place) => [...place.servers.map(({ output }) => output), place.guest.qemuErrors].join("");
    return [
      `migrate: ${this.migrating?.errors}`,
      `receive: ${this.receiving.errors}`,
      ...this.operator.map((line) => `operator: ${line}`),
      `source: ${of(this.here)}`,
      `destination: ${of(this.there)}`,
      JSON.stringify({ source: this.watched.source.ran, destination: this.watched.destination.ran }),
    ].join("\n");
  }

  state(side: Side): string | undefined {
    if (!existsSync(this.journals)) return undefined;
    const migration = readdirSync(this.journals).flatMap((file) => journalOf(file)?.migration ?? [])[0];
    return migration === undefined ? undefined : readJournal(this.journals, migration, side)?.state;
  }

  #waits(): ListedJournal | undefined {
    return listJournals(this.journals).find(({ standing }) => standing === "waits");
  }

  /** What an operator does who keeps to the rules, at once and, where something stood still, again when that goes on. */
  async decide(): Promise<string> {
    const said = [await this.#decide()];
    await this.#goesOn;
    await Promise.race([this.receiving.ended, pause(PATIENCE_MS)]);
    if (said[0] === "nobody" || this.#plan.stopMs !== null) said.push(await this.#decide());
    await (this.migrating as Child).ended;
    return said.filter((word, i) => word !== "nobody" && word !== said[i - 1]).join(", then ") || "nobody";
  }

  /** An operator does not wait for a `dirtmap migrate` that stands still. */
  #impatience(): Promise<unknown> {
    const { victim, stopMs } = this.#plan;
    return victim === "migrate" && stopMs !== null ? pause(stopMs / 2) : new Promise(() => {});
  }

  /** Looks at the destination, then says the one thing that is true. */
  async #decide(): Promise<string> {
    const migrating = this.migrating as Child;
    const asks = migrating.complained(/"event":"undecided"/).catch(() => {});
    await Promise.race([migrating.ended, asks, this.#impatience()]);
    const waits = this.#waits();
    if (waits === undefined) return "nobody";
    const decision = (await this.#willRunThere()) ? "abort" : "resume";
    const { status, stdout, stderr } = await runDirtmap([decision, waits.migration, "--journal", this.journals]);
    this.operator.push(`${decision}: ${stdout}${stderr}`);
    if (status === 0) return decision;
    // What went on in the meantime has settled it.
    if (this.#waits() === undefined) return "nobody";
    if (this.here.guest.isRunning) {
      // What stands still can't obey yet.
      expect(this.#plan.stopMs, stderr).not.toBeNull();
      return `a ${decision} that was refused`;
    }
    // A guest that has ended with its QEMU can only be given up.
    const aborted = await runDirtmap(["abort", waits.migration, "--journal", this.journals]);
    expect(aborted.status, aborted.stderr).toBe(0);
    return "abort";
  }

  /** The guest runs at the destination. Where it does not, it never will: that is what the operator makes certain of. */
  async #willRunThere(): Promise<boolean> {
    const { destination } = this.watched;
    if (destination.runs) return true;
    await this.receiving[Symbol.asyncDispose]();
    // Its last word may have been `cont`.
    await destination.qemu.status().catch(() => {});
    if (destination.runs) return true;
    await this.there.guest[Symbol.asyncDispose]();
    return false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#goesOn;
    await this.migrating?.[Symbol.asyncDispose]();
    await this.receiving[Symbol.asyncDispose]();
    for (const each of Object.values(this.watched)) await each[Symbol.asyncDispose]();
  }
}

async function happened(events: EventStream, name: string): Promise<void> {
  for await (const event of events) if (event.name === name) return;
}

async function until(what: string, look: () => boolean): Promise<void> {
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await pause(2)) if (look()) return;
  throw new Error(`${what} did not come within ${PATIENCE_MS} ms`);
}

/** The longest time that a guest stood still in the middle, in milliseconds. @throws where it ran twice at a time */
function longestStandstill(stretches: readonly Stretch[]): number {
  const inOrder = [...stretches].sort((a, b) => a.from - b.from);
  let longest = 0;
  for (const [i, { from }] of inOrder.entries()) {
    if (i === 0) continue;
    const before = inOrder[i - 1].until;
    expect(from, `the guest ran at both sides from ${from} on`).toBeGreaterThanOrEqual(before);
    longest = Math.max(longest, from - before);
  }
  return longest;
}

/** How many servers have a disk's file locked. */
function locksOf(disk: number, ...places: readonly Place[]): number {
  const holds = ({ pid }: { pid: number }) => {
    const folder = `/proc/${pid}/fdinfo`;
    return readdirSync(folder).some((fd) => /^lock:.* WRITE /m.test(readFileSync(join(folder, fd), "utf8")));
  };
  return places.map(({ servers }) => servers[disk]).filter((server) => server.isRunning && holds(server)).length;
}

/** Checks, from outside, that each block of a load's disk holds what the load has once written there: verified-io.c has how. */
function checkDisk(file: string): void {
  const bytes = readFileSync(file).subarray(0, LOAD_BLOCKS * LOAD_BLOCK_BYTES);
  const words = new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 8);
  const wordsOfBlock = LOAD_BLOCK_BYTES / 8;
  for (let block = 0; block < LOAD_BLOCKS; block++) {
    const first = unmixed(words[block * wordsOfBlock]);
    expect(Number(first >> 32n), `block ${block} is another's`).toBe(block);
    for (let i = 0; i < wordsOfBlock; i++) {
      if (words[block * wordsOfBlock + i] === mixed(first + BigInt(i) * STEP)) continue;
      throw new Error(`block ${block} of ${file} is torn at word ${i}`);
    }
  }
}

const STEP = 0x9e3779b97f4a7c15n;
const FACTOR = 0xbf58476d1ce4e5b9n;
const MASK = 0xffff_ffff_ffff_ffffn;

function mixed(word: bigint): bigint {
  const x = word & MASK;
  const y = ((x ^ (x >> 31n)) * FACTOR) & MASK;
  return y ^ (y >> 29n);
}

/** The word that {@link mixed} made this of. */
function unmixed(word: bigint): bigint {
  const y = word ^ (word >> 29n) ^ (word >> 58n);
  const x = (y * INVERSE) & MASK;
  return x ^ (x >> 31n) ^ (x >> 62n);
}

/** Of {@link FACTOR}, modulo 2^64, by Newton's iteration: each step doubles the bits that are right. */
const INVERSE = [1, 2, 3, 4, 5, 6].reduce((x) => (x * (2n - FACTOR * x)) & MASK, FACTOR);

/** One run. Returns in words who was hit, and where the guest runs in the end. */
async function broken(image: ShellImage, seed: number): Promise<string> {
  const plan = planOf(seed);
  await using places = new Places(image);
  await using move = await Move.begin(places, plan);
  try {
    await move.hit();
    const said = await move.decide();
    const { end, stoodStillMs } = await outcomeOf(move, plan);
    for (const name of DISKS) checkDisk(join(places.folder, name));
    const { victim, at, stopMs } = plan;
    process.stderr.write(
      `qemu: seed ${seed}: ${inWords(plan)}, ${said} decided, runs at the ${end}, stood still for ${stoodStillMs.toFixed(0)} ms\n`,
    );
    return `${victim} ${stopMs === null ? "killed" : "stopped"} at ${at}, runs at the ${end}`;
  } catch (error) {
    throw new Error(`${inWords(plan)}: ${(error as Error).stack}\n${move.transcript}`, { cause: error });
  }
}

function inWords({ victim, at, afterMs, stopMs, disk, tracker }: Plan): string {
  const which = victim.startsWith("server") ? `${victim} of ${DISKS[disk]}` : victim;
  const how = stopMs === null ? "killed" : `stopped for ${stopMs} ms`;
  return `${which} ${how} ${afterMs} ms after ${at}, by ${tracker}`;
}

/** Checks that the guest runs as it must. Returns where, and the longest time that it stood still. */
async function outcomeOf(move: Move, { victim, stopMs, disk }: Plan): Promise<{ end: string; stoodStillMs: number }> {
  expect(listJournals(move.journals).filter(({ standing }) => standing === "waits")).toEqual([]);
  const { here, there, watched } = move;
  const { source, destination } = watched;
  const stoodStillMs = longestStandstill([...source.ran, ...destination.ran]);
  const end = source.runs ? ("source" as const) : destination.runs ? ("destination" as const) : "nowhere";
  const side = victim.endsWith("destination") ? "destination" : "source";
  // Until the destination has recorded that it runs the guest, the source's QEMU has it.
  const had = move.state("destination") === "running" ? "destination" : "source";
  const isKilled = stopMs === null;
  const hangs = stopMs !== null && stopMs > HANG_THAT_SHOWS_MS && !["migrate", "receive"].includes(victim);
  const losesDisk = victim.startsWith("server") && (isKilled || hangs);
  // QEMU itself pauses, or ends, a guest whose device is gone for good.
  const isLost = losesDisk || (victim.startsWith("QEMU") && isKilled && had === side);
  if (end === "nowhere") {
    expect(isLost, "the guest runs nowhere").toBe(true);
    return { end, stoodStillMs };
  }
  const place = end === "source" ? here : there;
  await pause(LOAD_MS);
  const found = await endLoad(place);
  const lacksDisk = losesDisk && end === side;
  if (lacksDisk) expect(found).not.toContain("LOST");
  else for (const { reads } of counts(found)) expect(reads).toBeGreaterThan(0);
  // A hang shows to a guest that ran where it was.
  const shows = hangs && (side === "source" || end === "destination");
  if (!lacksDisk && !shows) expect(await place.guest.run("dmesg")).not.toMatch(COMPLAINT);
  const { qemu } = watched[end];
  expect((await qemu.capabilities()).get("pause-before-switchover"), "QEMU's settings").toBe(false);
  for (const n of DISKS.keys()) {
    if (!lacksDisk || n !== disk) expect(locksOf(n, here, there), `locks of ${DISKS[n]}`).toBe(1);
  }
  return { end, stoodStillMs };
}

const found = findShellImage(root);

if (found instanceof MissingError) {
  test.skip(`QEMU 10.1 or later as a client of vfio-user: ${found.message}`, () => {});
} else {
  it(
    "a guest of QEMU, of whose move one process is killed or stands still at a random moment, runs once or is brought back",
    async () => {
      await forEachSeed("qemu", FEW, (seed) => broken(found as ShellImage, seed));
    },
    NIGHT_MS,
  );
}
