import { z } from "zod";
import { type DirtmapError, explain } from "../../errors.js";
import type { Diagnosis, MigrationEvent, MigrationPhase } from "../../migration/events.js";
import type { DeviceReport, MigrationReport, RoundReport, WatchedReport } from "../../migration/report.js";
import { safeText } from "../../safe-text.js";
import { IDLE, statusOf } from "../migration-status.js";
import type { QmpEvent } from "../qmp/monitor.js";
import type { MigrationInfo } from "../qmp/qemu.js";
import { diagnose, ratesOf } from "./convergence.js";
import type { GuestIdentity, WatchedDevice } from "./guest-identity.js";
import type { DeviceFailure } from "./log-line.js";
import { type Sample, sampleOf } from "./sample.js";
import { changesOf, SETTING_NAMES, type WatchedSettings } from "./settings.js";
import { type StallLimits, StallRule } from "./stall-rule.js";
import { phaseOf, resultOf, wordsOf } from "./statuses.js";
import type { TraceFact } from "./trace-line.js";

/** Samples that are kept: enough for the rates of the last seconds. */
const MAX_SAMPLES = 400;
/** Entries of a list in the report. */
const MAX_ENTRIES = 10_000;
/** A diagnosis that says the same is told again after so long. */
const DIAGNOSE_MS = 2000;

const statusData = z.looseObject({ status: z.string().transform((status) => safeText(status, 64)) });
const deviceData = z.looseObject({
  "device-id": z.string().optional(),
  "qom-path": z.string(),
  "device-state": z.string().transform((state) => safeText(state, 64)),
});

/** One device, as far as it has told of itself. */
interface SeenDevice {
  readonly device: WatchedDevice;
  readonly states: { state: string; atMs: number }[];
  /** The newest that a trace told. */
  stopCopyBytes: number | null;
  /** The newest that a trace told once the machine stood still. */
  movedBytes: number | null;
  failure: string | null;
}

export interface ObserverOptions {
  readonly identity: GuestIdentity;
  readonly settings: WatchedSettings;
  readonly limits: StallLimits;
  /** Takes what happens, in order. */
  readonly tell: (event: MigrationEvent) => void;
}

/**
 * One migration of a QEMU, made of what QEMU says of it: it is told all that is seen, with the time by the watch's clock in
 * milliseconds, publishes events, and has a report in the end. Nothing here waits or asks.
 */
export class MigrationObserver {
  readonly #identity: GuestIdentity;
  readonly #limits: StallLimits;
  readonly #tell: (event: MigrationEvent) => void;
  readonly #devices: SeenDevice[];
  readonly #statuses: { state: string; atMs: number }[] = [];
  readonly #phases: { phase: MigrationPhase; sinceMs: number }[] = [];
  readonly #rounds: RoundReport[] = [];
  readonly #warnings: string[] = [];
  readonly #changes: { atMs: number; setting: string; to: number | boolean | null }[] = [];
  readonly #stalls: { fromMs: number; toMs: number | null; reasons: Diagnosis["reasons"] }[] = [];
  readonly #rule: StallRule;
  readonly #samples: Sample[] = [];
  #settings: WatchedSettings;
  #fromBeginning = true;
  /** When the migration began, by the watch's clock; null: it has not. */
  #beganMs: number | null = null;
  #endedMs = 0;
  /** Where the pass that is under way began. */
  #base: Sample | undefined;
  #lastPrecopy: Sample | undefined;
  #diagnosis: Omit<Diagnosis, "type"> | undefined;
  /** The vCPUs stand still since, by QEMU's clock. */
  #stoppedAt: number | null = null;
  #resumedAt: number | null = null;
  #lastInfo: MigrationInfo = {};
  /** Pages that devices wrote, by the trace, since the last synchronisation began. */
  #traced = 0;
  #tracedSinceMs: number | null = null;
  #result: Exclude<MigrationReport["result"], "indeterminate"> | null = null;

  constructor({ identity, settings, limits, tell }: ObserverOptions) {
    this.#identity = identity;
    this.#settings = settings;
    this.#limits = limits;
    this.#tell = tell;
    this.#rule = new StallRule(limits);
    this.#devices = identity.devices.map((device) => ({
      device,
      states: [],
      stopCopyBytes: null,
      movedBytes: null,
      failure: null,
    }));
    for (const { id, tellsStates } of identity.devices) {
      if (tellsStates !== false) continue;
      this.warn(`${id} tells no migration states: its QEMU was started without migration-events=on`);
    }
  }

  get hasBegun(): boolean {
    return this.#beganMs !== null;
  }

  /** How it has ended; null: it has not. */
  get result(): Exclude<MigrationReport["result"], "indeterminate"> | null {
    return this.#result;
  }

  get status(): string {
    return this.#statuses.at(-1)?.state ?? "none";
  }

  warn(text: string): void {
    if (this.#warnings.length < MAX_ENTRIES && !this.#warnings.includes(text)) this.#warnings.push(text);
  }

  /** QEMU has told something by itself. */
  event({ name, data, at }: QmpEvent, nowMs: number): void {
    if (name === "MIGRATION") {
      const told = statusData.safeParse(data);
      if (told.success) this.#status(told.data.status, nowMs, {});
    } else if (name === "VFIO_MIGRATION") this.#deviceEvent(data, nowMs);
    else if (!this.hasBegun || this.#result !== null) return;
    else if (name === "STOP") {
      this.#stoppedAt = at;
      if (this.#phase === "pre-copy") this.#enter("pausing", nowMs);
    } else if (name === "RESUME") this.#resumedAt = at;
  }

  /** QEMU has answered how its migration goes. */
  info(info: MigrationInfo, nowMs: number): void {
    this.#status(statusOf(info), nowMs, info);
    if (!this.hasBegun) return;
    const sample = sampleOf(info, this.#at(nowMs));
    // One that was cancelled, or has failed, tells nothing more of what it moved: the last sample is kept.
    if (sample === null) return;
    this.#lastInfo = info;
    this.#sample(sample);
  }

  settings(settings: WatchedSettings, nowMs: number): void {
    for (const name of changesOf(this.#settings, settings)) {
      const [setting, to] = [SETTING_NAMES[name], settings[name]];
      if (this.hasBegun && this.#changes.length < MAX_ENTRIES)
        this.#changes.push({ atMs: this.#at(nowMs), setting, to });
    }
    this.#settings = settings;
  }

  /** QEMU's trace log has told something. */
  trace(fact: TraceFact, nowMs: number): void {
    if (fact.kind === "pending") {
      const seen = this.#named(fact.name);
      if (seen === undefined) return;
      seen.stopCopyBytes = fact.stopCopyBytes;
      if (this.#stoppedAt !== null) seen.movedBytes = fact.stopCopyBytes;
    } else if (fact.kind === "sync-began") this.#traced = 0;
    else if (fact.kind === "dirty") this.#traced += fact.pages;
    else if (fact.kind === "sync-ended" && this.hasBegun) this.#readTraced(nowMs);
  }

  /** QEMU has said that a device failed. */
  failure({ name, reason }: DeviceFailure): void {
    const seen = this.#named(name);
    if (seen !== undefined) seen.failure ??= reason;
    this.warn(`QEMU says of ${seen?.device.id ?? safeText(name, 200)}: ${safeText(reason, 500)}`);
  }

  /** What was seen, once it is over, or the watch is. @param ended why the watch ended before the migration did */
  report(migration: string, nowMs: number, ended?: DirtmapError): MigrationReport {
    const atMs = this.#result === null ? this.#at(nowMs) : this.#endedMs;
    const failed = this.#devices.find(({ failure }) => failure !== null);
    const error = this.#errorOf(failed, ended);
    const { "total-time": totalMs } = this.#lastInfo;
    return {
      schemaVersion: 1,
      migration,
      result: this.#result ?? "indeterminate",
      verified: null,
      totalMs: this.#result === "completed" && totalMs !== undefined ? totalMs : rounded(atMs),
      downtimeMs: this.#downtime(),
      bytes: this.#samples.at(-1)?.sentBytes ?? 0,
      phases: this.#phases.map(({ phase, sinceMs }, i) => ({
        phase,
        ms: rounded((this.#phases[i + 1]?.sinceMs ?? atMs) - sinceMs),
      })),
      rounds: this.#rounds,
      devices: this.#devices.map((seen) => this.#deviceReport(seen)),
      design: "vmm",
      policy: "watched",
      memory: null,
      destination: null,
      predicted: null,
      watched: this.#watched(),
      warnings: this.#warnings,
      ...(error === undefined ? {} : { error }),
    };
  }

  get #phase(): MigrationPhase | undefined {
    return this.#phases.at(-1)?.phase;
  }

  /** Milliseconds since the migration began. */
  #at(nowMs: number): number {
    return Math.max(0, nowMs - (this.#beganMs ?? nowMs));
  }

  #status(status: string, nowMs: number, info: MigrationInfo): void {
    if (this.#result !== null) return;
    if (!this.hasBegun) {
      // What ended before the watch is not what is waited for.
      if (IDLE.has(status)) return;
      this.#fromBeginning = status === "setup" || this.#sawIdle;
      this.#beganMs = nowMs - (this.#fromBeginning ? 0 : (info["total-time"] ?? 0));
    }
    if (status === this.status) return;
    const atMs = this.#at(nowMs);
    if (this.#statuses.length < MAX_ENTRIES) this.#statuses.push({ state: status, atMs: rounded(atMs) });
    const result = resultOf(status);
    if (result !== null) {
      this.#end(result, atMs, info);
      return;
    }
    const phase = phaseOf(status);
    const text = wordsOf(status);
    if (phase !== null && phase !== this.#phase) this.#enter(phase, nowMs, text);
    else if (text !== undefined && this.#phase !== undefined) {
      this.#tell({ type: "phase", phase: this.#phase, atMs, text });
    }
  }

  /** QEMU was seen without a migration. */
  #sawIdle = false;

  /** Before it has begun: QEMU has none under way. */
  idle(): void {
    this.#sawIdle = true;
  }

  #enter(phase: MigrationPhase, nowMs: number, text?: string): void {
    const atMs = this.#at(nowMs);
    this.#phases.push({ phase, sinceMs: atMs });
    this.#tell({ type: "phase", phase, atMs, ...(text === undefined ? {} : { text }) });
  }

  #end(result: NonNullable<MigrationObserver["result"]>, atMs: number, info: MigrationInfo): void {
    this.#result = result;
    this.#endedMs = atMs;
    const stall = this.#stalls.at(-1);
    if (stall !== undefined) stall.toMs ??= result === "completed" ? rounded(atMs) : null;
    const why = info["error-desc"];
    if (why !== undefined) this.#why = why;
    const text = this.#why === undefined ? {} : { text: this.#why };
    this.#tell({ type: "phase", phase: result, atMs, ...text });
  }

  /** Why it failed, in QEMU's words. */
  #why: string | undefined;

  /** QEMU has answered, after the end, why. */
  reason(info: MigrationInfo): void {
    this.#why ??= info["error-desc"];
    if (sampleOf(info, 0) === null) return;
    const sample = sampleOf(info, this.#endedMs);
    if (sample === null || this.#result !== "completed") return;
    this.#lastInfo = info;
    this.#samples.push(sample);
    this.#lastRound(sample);
  }

  #sample(sample: Sample): void {
    this.#samples.push(sample);
    if (this.#samples.length > MAX_SAMPLES) this.#samples.shift();
    const inPrecopy = this.#phase === "pre-copy";
    const stall = inPrecopy ? this.#rule.judge(sample) : null;
    const base = this.#base;
    if (base === undefined) this.#base = sample;
    else if (inPrecopy && sample.pass > base.pass) this.#passEnded(base, sample);
    if (inPrecopy) this.#lastPrecopy = sample;
    this.#progress(sample);
    if (inPrecopy) this.#judge(sample, stall);
    if (sample.status === "completed") this.#lastRound(sample);
  }

  #passEnded(base: Sample, sample: Sample): void {
    this.#round(base, sample, "pre-copy", this.#rule.passBytes ?? sample.memoryBytes);
    this.#base = sample;
  }

  /** The pause is a round of its own. */
  #lastRound(sample: Sample): void {
    const from = this.#lastPrecopy ?? this.#base;
    if (from === undefined || this.#rounds.at(-1)?.phase === "stop-copy") return;
    if (this.#base !== undefined && this.#base !== from) this.#round(this.#base, from, "pre-copy", from.memoryBytes);
    this.#round(from, sample, "stop-copy", 0);
  }

  #round(from: Sample, to: Sample, phase: "pre-copy" | "stop-copy", remaining: number): void {
    const round: RoundReport = {
      round: this.#rounds.length,
      phase,
      pages: Math.max(0, to.pages - from.pages),
      zeroPages: Math.max(0, to.zeroPages - from.zeroPages),
      bytes: Math.max(0, to.sentBytes - from.sentBytes),
      ms: rounded(to.atMs - from.atMs),
      remaining: Math.round(remaining),
      byDevice: {},
    };
    if (this.#rounds.length < MAX_ENTRIES) this.#rounds.push(round);
    this.#tell({ type: "round", round });
  }

  #progress(sample: Sample): void {
    const { sent } = ratesOf(this.#samples);
    this.#tell({
      type: "progress",
      atMs: sample.atMs,
      round: this.#rounds.length,
      sentBytes: Math.max(0, sample.sentBytes - (this.#base?.sentBytes ?? 0)),
      remainingBytes: sample.remainingBytes ?? sample.memoryBytes,
      bytesPerSecond: sent === null ? 0 : (sent.low + sent.high) / 2,
      expectedDowntimeMs: sample.expectedDowntimeMs,
      dirtyBytesPerSecond: {},
    });
  }

  #judge(sample: Sample, stall: ReturnType<StallRule["judge"]>): void {
    const devices = this.#devices.flatMap(({ device, stopCopyBytes }) =>
      stopCopyBytes === null ? [] : [{ device: device.id, stopCopyBytes }],
    );
    const passBytes = this.#rule.passBytes;
    const now = diagnose({ samples: this.#samples, passBytes, stall, settings: this.#settings, devices });
    const before = this.#diagnosis;
    this.#noteStall(now, before?.stalled === true, sample.atMs);
    if (before !== undefined && sameVerdict(before, now) && now.atMs - before.atMs < DIAGNOSE_MS) return;
    this.#diagnosis = now;
    this.#tell({ type: "diagnosis", ...now });
  }

  #noteStall({ stalled, reasons }: Omit<Diagnosis, "type">, was: boolean, atMs: number): void {
    const open = this.#stalls.at(-1);
    const isOpen = open !== undefined && open.toMs === null;
    if (stalled && !(was && isOpen)) this.#stalls.push({ fromMs: rounded(atMs), toMs: null, reasons });
    else if (stalled && isOpen) open.reasons = reasons;
    else if (!stalled && isOpen) open.toMs = rounded(atMs);
  }

  #deviceEvent(data: unknown, nowMs: number): void {
    const told = deviceData.safeParse(data);
    if (!told.success) return;
    const { "qom-path": path, "device-state": state } = told.data;
    const seen = this.#devices.find(({ device }) => device.path === path);
    if (seen === undefined) return;
    const before = seen.states.at(-1)?.state;
    const atMs = this.#at(nowMs);
    if (seen.states.length < MAX_ENTRIES) seen.states.push({ state, atMs: rounded(atMs) });
    this.#tell({ type: "device", atMs, device: seen.device.id, state });
    // On the way to the destination a device only runs again if something went wrong, or was cancelled.
    const wentBack = state === "running" && before !== undefined && LEAVING.has(before);
    if (wentBack && (this.status === "active" || this.status === "device")) {
      this.warn(`${seen.device.id} went from '${before}' to 'running' in the middle: QEMU tells a recovery so`);
    }
  }

  /** Of which device the pages are is known only if there is one. */
  #readTraced(nowMs: number): void {
    const [only, ...others] = this.#devices;
    const owner = only !== undefined && others.length === 0 ? only.device.id : "container";
    const atMs = this.#at(nowMs);
    const elapsedMs = atMs - (this.#tracedSinceMs ?? 0);
    this.#tracedSinceMs = atMs;
    const owners = { [owner]: { reported: this.#traced, exclusive: 0, readMs: 0, heat: [] } };
    this.#tell({ type: "read", atMs, round: this.#rounds.length, elapsedMs, owners });
    this.#tracedTotal += this.#traced;
    this.#traced = 0;
  }

  #tracedTotal: number | null = null;

  #named(name: string): SeenDevice | undefined {
    return this.#devices.find(({ device }) => device.kernelName === name || device.id === name);
  }

  /** QEMU's own figure; where it has gone before it told that, the time between its two events. */
  #downtime(): number | null {
    if (this.#result !== "completed") return null;
    if (this.#lastInfo.downtime !== undefined) return this.#lastInfo.downtime;
    return this.#stoppedAt !== null && this.#resumedAt !== null ? rounded(this.#resumedAt - this.#stoppedAt) : null;
  }

  #errorOf(failed: SeenDevice | undefined, ended: DirtmapError | undefined): MigrationReport["error"] {
    if (failed?.failure != null) {
      const { device, failure } = failed;
      return {
        code: "DEVICE_FAILED",
        message: `'${device.id}' failed, although QEMU says '${this.status}': ${failure}`,
        remedy: "have the guest reset the device, or restart it; see QEMU's log on both sides",
        device: { id: device.id, side: this.#incoming ? "destination" : "source", reason: failure },
      };
    }
    if (this.#result === "failed" || this.#result === "cancelled") {
      const why = this.#why ?? (this.#result === "failed" ? "QEMU does not say why" : "somebody cancelled it");
      return {
        code: this.#result === "failed" ? "QEMU_MIGRATION_FAILED" : "CANCELLED",
        message: `the migration has ${this.#result === "failed" ? "failed" : "been cancelled"}: ${why}`,
        remedy: this.#result === "failed" ? "see the logs of both QEMUs" : undefined,
      };
    }
    if (this.#result !== null || ended === undefined) return undefined;
    return { code: ended.code, message: explain(ended) };
  }

  #deviceReport({ device }: SeenDevice): DeviceReport {
    return {
      id: device.id,
      model: device.model,
      tracker: "vmm",
      granule: null,
      reason: "its VMM tracks and moves it; it was only watched",
      alternatives: [],
      pagesReported: this.#devices.length === 1 ? this.#tracedTotal : null,
      pagesExclusive: null,
      readMs: 0,
      suspendedMs: 0,
    };
  }

  #watched(): WatchedReport {
    const settings = Object.entries(SETTING_NAMES).map(([key, name]) => [
      name,
      this.#settings[key as keyof WatchedSettings],
    ]);
    return {
      name: this.#identity.name,
      uuid: this.#identity.uuid,
      fromBeginning: this.#fromBeginning,
      statuses: this.#statuses,
      devices: this.#devices.map(({ device, states, movedBytes }) => ({
        id: device.id,
        states,
        stopCopyBytes: movedBytes,
      })),
      deviceBytes: this.#samples.at(-1)?.deviceBytes ?? null,
      settings: Object.fromEntries(settings),
      changes: this.#changes,
      stalls: this.#stalls,
    };
  }

  /** This side receives: its QEMU waited for a guest. */
  #incoming = false;

  incoming(): void {
    this.#incoming = true;
  }
}

/** States of a device that is on its way to another host. */
const LEAVING = new Set(["pre-copy", "pre-copy-p2p", "stop-copy"]);

function sameVerdict(a: Omit<Diagnosis, "type">, b: Omit<Diagnosis, "type">): boolean {
  const codes = ({ reasons }: Omit<Diagnosis, "type">) => reasons.map(({ code, device }) => `${code} ${device}`).join();
  return a.converging === b.converging && a.stalled === b.stalled && codes(a) === codes(b);
}

function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
