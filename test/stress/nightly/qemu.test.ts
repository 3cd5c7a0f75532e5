import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, it, test } from "vitest";
import { journalOf, readJournal, type Side } from "../../../src/migration/journal.js";
import { listJournals } from "../../../src/migration/journals.js";
import type { EventStream } from "../../../src/qemu/qmp/event-stream.js";
import type { Qemu } from "../../../src/qemu/qmp/qemu.js";
import { Random } from "../../../tools/random.js";
import { MissingError } from "../../../tools/vm/missing.js";
import {
  COMPLAINT,
  connect,
  counts,
  endLoad,
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
 * Moves of a real guest of QEMU of which one process is killed at a random moment: a `dirtmap`, a QEMU, or a server of a device.
 * Whatever happens, the guest never runs twice; where it runs nowhere, the operator's command brings it back; and its disks are
 * whole. A guest is lost only with the QEMU that has it, and a disk only with the server that has it.
 *   DIRTMAP_SEEDS=1-200 npm run test:stress -- qemu       a night's worth; started again, it goes on where it was
 *   DIRTMAP_SEEDS=17 npm run test:stress -- qemu          one seed again
 */

const PROGRAM = join(root, "bin/dirtmap.js");
const FEW = 1;
const NIGHT_MS = 12 * 3_600_000;
const PATIENCE_MS = 180_000;
/** The load runs on for this long where the guest ends up. */
const LOAD_MS = 1000;

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

interface Plan {
  readonly victim: Victim;
  readonly at: (typeof MOMENTS)[number][1];
  readonly afterMs: number;
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
  };
}

/** One move, and what is known of it from outside. */
class Move implements AsyncDisposable {
  readonly here: Place;
  readonly there: Place;
  readonly journals: string;
  readonly receiving: Child;
  readonly #watched: { source: Qemu; destination: Qemu };
  migrating: Child | undefined;
  readonly #plan: Plan;

  private constructor(
    places: Places,
    parts: { here: Place; there: Place; watched: { source: Qemu; destination: Qemu }; plan: Plan },
  ) {
    this.here = parts.here;
    this.there = parts.there;
    this.#watched = parts.watched;
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
    const watched = { source: await connect(here.watched), destination: await connect(there.watched) };
    return new Move(places, { here, there, watched, plan });
  }

  get #common(): string[] {
    return ["--journal", this.journals, "--qemu-address", `unix:${this.there.qmp}-stream`, "--json"];
  }

  /** Hits the victim at its moment, or once all is over. */
  async hit(): Promise<void> {
    const { at, afterMs, victim, tracker } = this.#plan;
    const { address } = await this.receiving.said("event", "listening");
    using events = this.#watched.source.events();
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
    if (victim === "migrate") migrating.kill("SIGKILL");
    else if (victim === "receive") this.receiving.kill("SIGKILL");
    else {
      const place = victim.endsWith("destination") ? this.there : this.here;
      if (victim.startsWith("QEMU")) await place.guest[Symbol.asyncDispose]();
      else await place.servers[0].end("SIGKILL");
    }
  }

  state(side: Side): string | undefined {
    if (!existsSync(this.journals)) return undefined;
    const migration = readdirSync(this.journals).flatMap((file) => journalOf(file)?.migration ?? [])[0];
    return migration === undefined ? undefined : readJournal(this.journals, migration, side)?.state;
  }

  async runs(side: Side): Promise<boolean> {
    const { guest } = side === "source" ? this.here : this.there;
    if (!guest.isRunning) return false;
    return (await this.#watched[side].status().catch(() => ({ running: false }))).running;
  }

  /** What an operator does who keeps to the rules: looks at the destination, then says the one thing that is true. */
  async decide(): Promise<string> {
    const migrating = this.migrating as Child;
    await Promise.race([migrating.ended, migrating.complained(/"event":"undecided"/).catch(() => {})]);
    await Promise.race([this.receiving.ended, pause(PATIENCE_MS)]);
    const waits = listJournals(this.journals).find(({ standing }) => standing === "waits");
    if (waits === undefined) return "nobody";
    const decision = (await this.runs("destination")) ? "abort" : "resume";
    if (decision === "resume") {
      // It does not run there; now it never will.
      await this.receiving[Symbol.asyncDispose]();
      await this.there.guest[Symbol.asyncDispose]();
    }
    const { status, stderr } = await runDirtmap([decision, waits.migration, "--journal", this.journals]);
    if (status !== 0) {
      // A guest that has ended with its QEMU can only be given up.
      expect(this.here.guest.isRunning, stderr).toBe(false);
      const aborted = await runDirtmap(["abort", waits.migration, "--journal", this.journals]);
      expect(aborted.status, aborted.stderr).toBe(0);
    }
    await migrating.ended;
    return decision;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.migrating?.[Symbol.asyncDispose]();
    await this.receiving[Symbol.asyncDispose]();
    for (const qemu of Object.values(this.#watched)) await qemu[Symbol.asyncDispose]();
  }
}

async function happened(events: EventStream, name: string): Promise<void> {
  for await (const event of events) if (event.name === name) return;
}

async function until(what: string, look: () => boolean): Promise<void> {
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await pause(2)) if (look()) return;
  throw new Error(`${what} did not come within ${PATIENCE_MS} ms`);
}

/** One run. Returns in words who was hit, what the operator said, and where the guest runs in the end. */
async function killed(image: ShellImage, seed: number): Promise<string> {
  const plan = planOf(seed);
  await using places = new Places(image);
  await using move = await Move.begin(places, plan);
  await move.hit();
  const said = await move.decide();
  expect(listJournals(move.journals).filter(({ standing }) => standing === "waits")).toEqual([]);

  const [source, destination] = [await move.runs("source"), await move.runs("destination")];
  expect(source && destination, "the guest runs twice").toBe(false);
  const end = source ? "source" : destination ? "destination" : "nowhere";
  const place = source ? move.here : move.there;
  const { victim } = plan;
  const side = victim.endsWith("destination") ? "destination" : "source";
  // Until the destination has recorded that it runs the guest, the source's QEMU has it.
  const had = move.state("destination") === "running" ? "destination" : "source";
  const isLostWithQemu = victim.startsWith("QEMU") && end === "nowhere" && had === side;
  // QEMU itself pauses, or ends, a guest whose device is gone for good.
  const isLostWithServer = victim.startsWith("server") && (end === "nowhere" || end === side);
  if (!isLostWithQemu && !isLostWithServer) {
    expect(end, `seed ${seed}: the guest runs nowhere`).not.toBe("nowhere");
    await pause(LOAD_MS);
    for (const { reads } of counts(await endLoad(place))) expect(reads).toBeGreaterThan(0);
    expect(await place.guest.run("dmesg")).not.toMatch(COMPLAINT);
  }
  return `${victim} killed at ${plan.at}, ${said} decided, runs at the ${end}`;
}

const found = findShellImage(root);

if (found instanceof MissingError) {
  test.skip(`QEMU 10.1 or later as a client of vfio-user: ${found.message}`, () => {});
} else {
  it(
    "a guest of QEMU, of whose move one process is killed at a random moment, runs once or is brought back",
    async () => {
      await forEachSeed("qemu", FEW, (seed) => killed(found as ShellImage, seed));
    },
    NIGHT_MS,
  );
}
