import { DEFAULTS } from "../defaults.js";
import { DirtmapError, explain, UsageError } from "../errors.js";
import { agree } from "./agreement.js";
import { DEFAULT_TIMEOUTS, type Timeouts } from "./deadline.js";
import { DecisionListener, decisionSocket } from "./decision.js";
import { parseDestinationReport } from "./destination-report.js";
import type { MigrationPhase } from "./events.js";
import { Journal, newMigrationId } from "./journal.js";
import { defaultJournalDirectory } from "./journal-directory.js";
import { announceHandover, migratableDevices } from "./lock-step.js";
import type { MemoryMove, MemoryMover, MovedMachine, MoverContext } from "./memory-mover.js";
import { Opened } from "./opened.js";
import { type AfterRead, PageMover, type PageMoverOptions, type PageTransport } from "./page-mover.js";
import { type ControlLink, Peer } from "./peer.js";
import type { MemoryComparison, MigrationReport, MigrationResult, PredictedOutcome } from "./report.js";
import { ReportBuilder } from "./report-builder.js";
import { SourceDevices } from "./source-devices.js";
import { problemOf, SourceHandover } from "./source-handover.js";
import { MAX_MESSAGE_DATA, type MoverKind } from "./stream/messages.js";
import { givenUp, type MigrationPlace, notConfirmed, notDecided, type Undecided, undecided } from "./undecided.js";

/** The way to a destination: one control connection. */
export interface ControlTransport {
  /** For messages and the journal: `tls://host:port`. */
  readonly destination: string;
  /** @throws UsageError where nobody can be reached there, or certificates don't fit */
  connect(signal: AbortSignal): Promise<ControlLink>;
}

/** The connections to a destination: one control connection, and channels for pages. */
export interface SourceTransport extends ControlTransport, PageTransport {}

/** What a migration needs, whatever moves the memory. */
export interface HandoverOptions {
  /** How long the workload runs on at the destination before it is checked. Default 500 ms. */
  readonly runAfterMs?: number;
  /** Cancels, at any point before the source gives up. Afterwards it is not heeded: the machine would be lost. */
  readonly signal?: AbortSignal;
  /** The id that journals, reports and `dirtmap resume` name it by: of digits, lower-case letters and `-`. Default: a new one. */
  readonly migration?: string;
  readonly journalDirectory?: string;
  /**
   * How long an undecided source waits for the operator: milliseconds. Default: Infinity, until told. When the time is
   * over the result is `indeterminate`, and the paused machine is the caller's: if it ends, its memory is lost.
   */
  readonly decideMs?: number;
  /** Called when the source has given the machine up: from there on it can't be cancelled. */
  readonly onGivenUp?: () => void;
  /** Called when the operator has to decide. */
  readonly onUndecided?: (undecided: Undecided) => void;
  /** Called when it is known, or decided, where the machine may run; not if {@link decideMs} is over before. */
  readonly onSettled?: () => void;
  readonly timeouts?: Partial<Timeouts>;
  /** What was foreseen, for the report to put beside what happened. */
  readonly predicted?: PredictedOutcome;
  readonly hooks?: Pick<MigrationHooks, "beforePhase">;
}

/** The options of `migrate`. */
export interface MigrateOptions extends HandoverOptions, PageMoverOptions {
  readonly transport: SourceTransport;
  readonly hooks?: MigrationHooks;
}

/** Hooks for tests. */
export interface MigrationHooks {
  beforePhase?(phase: MigrationPhase): void | Promise<void>;
  afterRead?: AfterRead;
}

/** The destination's check after the workload ran on. */
const AUDIT_MS = 60_000;

/**
 * Migrates a running machine and returns what happened. The machine runs at the end in exactly one place, or, where the
 * result is `indeterminate`, nowhere here: the source stays paused.
 *
 * Point of no return: once the destination is READY the source records that it gives the machine up, and says GO. Until
 * then any error, and the signal, leave the source running.
 * @throws UsageError where nothing was started: no such destination, an incompatible one, a policy that can't be kept
 */
export async function migrate(options: MigrateOptions): Promise<MigrationReport> {
  const { machine, transport, hooks } = options;
  return await migrateBy(new PageMover({ ...options, afterRead: hooks?.afterRead }), machine, transport, options);
}

/**
 * {@link migrate} for any mover of the memory.
 * @throws UsageError as {@link migrate} does
 */
export async function migrateBy<Kind extends MoverKind>(
  mover: MemoryMover<Kind>,
  machine: MovedMachine,
  transport: ControlTransport,
  options: HandoverOptions = {},
): Promise<MigrationReport> {
  const timeouts = { ...DEFAULT_TIMEOUTS, ...options.timeouts };
  const { migration = newMigrationId(), predicted = null } = options;
  const report = new ReportBuilder({ migration, predicted, ...mover.tracking }, timeouts.deviceMs);
  await using opened = new Opened((what, doing) => report.tried(what, doing));
  const setting: Setting = {
    options,
    timeouts,
    place: {
      migration,
      destination: transport.destination,
      directory: options.journalDirectory ?? defaultJournalDirectory(),
      outlives: mover.outlives === true,
    },
    report,
    opened,
    enter: async (phase, text) => {
      report.clock.enter(phase, text);
      await options.hooks?.beforePhase?.(phase);
    },
  };
  try {
    await setting.enter("connecting");
    const connected = await connect(mover, machine, transport, setting);
    return await new Migration(setting, connected).run();
  } catch (error) {
    // Nothing has been started.
    if (error instanceof UsageError) throw error;
    return failed(setting, error, { devices: [], stateBytes: 0 });
  }
}

/** What all phases of a migration have in common. */
interface Setting {
  readonly options: HandoverOptions;
  readonly timeouts: Timeouts;
  readonly place: MigrationPlace;
  readonly report: ReportBuilder;
  /** Closed when the migration is over. */
  readonly opened: Opened;
  enter(phase: MigrationPhase, text?: string): Promise<void>;
}

/** A source whose destination has accepted. */
interface Connected {
  readonly peer: Peer;
  /** Fires on cancel and when the destination is lost; whatever is under way ends. */
  readonly signal: AbortSignal;
  readonly devices: SourceDevices;
  readonly move: MemoryMove;
  readonly handover: SourceHandover;
}

/** Finds out whether this can work at all, and who is on the other side. Nothing of the machine is touched. */
async function connect<Kind extends MoverKind>(
  mover: MemoryMover<Kind>,
  machine: MovedMachine,
  transport: ControlTransport,
  { options, timeouts, place, report, opened, enter }: Setting,
): Promise<Connected> {
  const { migration, destination, directory } = place;
  const cancelled = options.signal ?? new AbortController().signal;
  decisionSocket(directory, migration);
  const migratable = await migratableDevices(machine);
  const plan = await mover.plan();
  cancelled.throwIfAborted();
  const peer = new Peer(await transport.connect(cancelled));
  opened.add("the connection closed", () => peer.close());
  const signal = AbortSignal.any([cancelled, peer.lost]);
  try {
    const { offer, shape } = plan;
    const { runAfterMs = DEFAULTS.runAfterMs } = options;
    const { acceptMs } = timeouts;
    const answer = await agree(peer, { destination, migration, offer, shape, runAfterMs, acceptMs, signal });
    const context: MoverContext = { place, peer, signal, timeouts, clock: report.clock, enter, report, opened };
    const move = await plan.open(answer, context);
    const devices = new SourceDevices(migratable, { peer, timeouts, signal });
    const handover = new SourceHandover({
      journal: Journal.source(directory, migration, destination),
      peer,
      timeouts,
      takeBack: async () => {
        for (const lost of await devices.takeBack()) report.warn(lost);
        await move.takeBack();
        report.resumed(performance.now());
      },
      warn: (text) => report.warn(text),
    });
    // Open long before GO, so that a decision just after GO is heard.
    const decisions = await DecisionListener.open(directory, migration, (decision) => handover.decide(decision));
    opened.add("the socket for decisions closed", () => decisions[Symbol.asyncDispose]());
    return { peer, signal, devices, move, handover };
  } catch (error) {
    peer.send({ type: "ABORT", ...problemOf(error) }).catch(() => {});
    throw error;
  }
}

/** A migration that both sides have agreed to. */
class Migration {
  readonly #setting: Setting;
  readonly #connected: Connected;

  constructor(setting: Setting, connected: Connected) {
    this.#setting = setting;
    this.#connected = connected;
  }

  /** The story of a migration. */
  async run(): Promise<MigrationReport> {
    const { enter, report, place } = this.#setting;
    const { signal, devices, move, handover } = this.#connected;
    const { comparison } = move;
    try {
      const stopped = await move.start();
      await devices.startPrecopy(stopped);
      await enter("pre-copy");
      await move.converge(devices);
      await enter("pausing");
      signal.throwIfAborted();
      report.paused(move.pausedAt ?? performance.now());
      await move.stop(() => devices.stop());
      await enter("stop-copy");
      const rootDigest = await this.#finish();
      if (comparison?.when === "before") {
        await enter("verifying");
        const memory = await comparison.compare(rootDigest, signal);
        report.compared(memory);
        if (memory.pagesDifferent > 0) throw different(memory);
      }
      await enter("handover");
      return await this.#handOver(rootDigest);
    } catch (error) {
      // After giving up, only a confirmation tells where the machine runs.
      if (handover.state !== "preparing") return this.#end("indeterminate", notDecided(place, error, 0));
      await handover.fail(error as Error);
      return this.#failed(error);
    } finally {
      await devices.close();
    }
  }

  /** Moves the rest. Resolves when the destination has it all, verified, with what it says that its memory holds. */
  async #finish(): Promise<string | undefined> {
    const { peer, signal, devices, move } = this.#connected;
    const { state, round, completed } = await move.finish(() => devices.sendRest());
    if (state.length > MAX_MESSAGE_DATA) {
      throw new DirtmapError(`the vCPUs' state has ${state.length} bytes`, { code: "BAD_VCPU_STATE" });
    }
    await peer.send({ type: "VCPU_STATE", data: state });
    peer.expectNothingBefore("PREPARE");
    await peer.send({ type: "PREPARE", ...(round === undefined ? {} : { round }) });
    await completed;
    const { rootDigest } = await peer.expect(["READY"], this.#setting.timeouts.readyMs, signal);
    return rootDigest;
  }

  /** Gives the machine up, lets the destination run it, and compares and reports afterwards. */
  async #handOver(rootDigest: string | undefined): Promise<MigrationReport> {
    const { options, timeouts, place, report, enter } = this.#setting;
    const { peer, signal, devices, move, handover } = this.#connected;
    peer.expectNothingBefore("GO");
    const { decideMs = DEFAULTS.decideMs } = options;
    // Before `given-up` is recorded: from the record on, no server may let its device run again by itself.
    const told = { migration: place.migration, deviceMs: timeouts.deviceMs };
    await announceHandover(devices.devices, "committing", told);
    const outcome = await handover.handOver({
      signal,
      decideMs,
      givenUp: () => void this.#tell(() => options.onGivenUp?.()),
      undecided: async (why) => {
        const asked = undecided(place, why, decideMs);
        await this.#tell(() => options.onUndecided?.(asked));
        await this.#tell(() => enter("indeterminate", explain(notConfirmed(asked))));
      },
    });
    if (outcome.state === "undecided") return this.#end("indeterminate", notDecided(place, outcome.why, decideMs));
    await this.#tell(() => options.onSettled?.());
    if (outcome.state === "taken-back") return this.#failed(outcome.why);
    await report.tried("the servers of the devices told", announceHandover(devices.devices, "gone", told));
    if (outcome.running !== null) report.resumed(outcome.running.at);
    await report.tried("the source's machine given up", move.gone());
    if (outcome.running === null) return this.#end("indeterminate", givenUp());
    try {
      await enter("running-at-destination");
      if (move.comparison?.when === "after") {
        await enter("verifying");
        report.compared(await move.comparison.compare(rootDigest));
      }
      await enter("auditing");
      await this.#audit(outcome.running.resumeMs);
    } catch (error) {
      // The machine runs at the destination; what is missing is the proof.
      return this.#end("completed", error);
    }
    return this.#end("completed");
  }

  /** Waits until the workload has run on at the destination, and takes its findings. */
  async #audit(resumeMs: number): Promise<void> {
    const { options, report } = this.#setting;
    const waitMs = (options.runAfterMs ?? DEFAULTS.runAfterMs) + AUDIT_MS;
    const { report: found } = await this.#connected.peer.expect(["REPORT"], waitMs);
    report.audited(parseDestinationReport(found, resumeMs));
  }

  /** Tells others of the handover; that they throw must not end the wait for a decision. */
  async #tell(call: () => void | Promise<void>): Promise<void> {
    try {
      await call();
    } catch (error) {
      this.#setting.report.warn(explain(error));
    }
  }

  #failed(error: unknown): MigrationReport {
    return failed(this.#setting, error, this.#moved());
  }

  #end(result: MigrationResult, error?: unknown): MigrationReport {
    return this.#setting.report.end(result, this.#moved(), error);
  }

  #moved(): Parameters<ReportBuilder["end"]>[1] {
    const { move, devices } = this.#connected;
    return { devices: move.conclude(), stateBytes: devices.bytes };
  }
}

/** The report of a migration that failed, or was cancelled, before the source gave up. */
function failed(
  { options, report }: Setting,
  error: unknown,
  moved: Parameters<ReportBuilder["end"]>[1],
): MigrationReport {
  if (options.signal?.aborted !== true) return report.end("failed", moved, error);
  const cancelled = new DirtmapError("the migration was cancelled; the source goes on running", {
    code: "CANCELLED",
    cause: error,
  });
  return report.end("cancelled", moved, cancelled);
}

function different({ pagesDifferent, firstAddresses, coveredBy }: MemoryComparison): DirtmapError {
  const by = coveredBy.length === 0 ? "no tracker ever reported them" : `reported by ${coveredBy.join(", ")}`;
  return new DirtmapError(`${pagesDifferent} pages differ at the destination (${firstAddresses.join(", ")} …; ${by})`, {
    code: "MEMORY_DIFFERS",
    attempted: "compare the destination's memory with this one",
  });
}
