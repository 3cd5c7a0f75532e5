import { z } from "zod";
import { type DirtmapError, explain } from "../../errors.js";
import { round } from "../../migration/clock.js";
import type { Diagnosis, MigrationEvent, MigrationPhase } from "../../migration/events.js";
import type { DeviceReport, MigrationReport, RoundReport, WatchedReport } from "../../migration/report.js";
import { safeText } from "../../safe-text.js";
import { IDLE, statusOf } from "../migration-status.js";
import type { QmpEvent } from "../qmp/monitor.js";
import type { MigrationInfo } from "../qmp/qemu.js";
import { diagnose, ratesOf } from "./convergence.js";
import type { GuestIdentity, WatchedDevice } from "./guest-identity.js";
import { type Sample, sampleOf } from "./sample.js";
import { changesOf, namedSettings, SETTING_NAMES, type WatchedSettings } from "./settings.js";
import { type StallLimits, StallRule } from "./stall-rule.js";
import { phaseOf, resultOf, type WatchedResult, wordsOf } from "./statuses.js";

/** Samples that are kept: more than are taken in the seconds over which rates are taken. */
const MAX_SAMPLES = 400;
/** Entries of a list in the report. */
const MAX_ENTRIES = 10_000;
/** A diagnosis that says the same is told again after this long. */
const DIAGNOSE_MS = 2000;

const statusData = z.looseObject({ status: z.string().transform((status) => safeText(status, 64)) });
const deviceData = z.looseObject({
  "qom-path": z.string(),
  "device-state": z.string().transform((state) => safeText(state, 64)),
});

/** States of a device that is on its way to another host. */
const LEAVING = new Set(["pre-copy", "pre-copy-p2p-prepare", "pre-copy-p2p", "stop-copy"]);
/** Statuses of a migration that has not been given up. */
const UNDER_WAY = new Set(["active", "pre-switchover", "device"]);

interface SeenDevice {
  readonly device: WatchedDevice;
  readonly states: { state: string; atMs: number }[];
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
 * milliseconds, publishes events, and makes a report in the end. Nothing here waits or asks.
 *
 * Answers and events are not in one order: an answer may be older than an event that came before it. So once QEMU has told a
 * status by an event, only events change the status.
 */
export class MigrationObserver {
  readonly #identity: GuestIdentity;
  readonly #tell: (event: MigrationEvent) => void;
  readonly #devices: readonly SeenDevice[];
  readonly #statuses: { state: string; atMs: number }[] = [];
  readonly #phases: { phase: MigrationPhase; sinceMs: number }[] = [];
  readonly #rounds: RoundReport[] = [];
  readonly #warnings: string[] = [];
  readonly #changes: { atMs: number; setting: string; to: number | boolean | null }[] = [];
  readonly #stalls: { fromMs: number; toMs: number | null; reasons: Diagnosis["reasons"] }[] = [];
  readonly #rule: StallRule;
  /** The newest last. */
  readonly #samples: Sample[] = [];
  #settings: WatchedSettings;
  #sawIdle = false;
  #toldByEvents = false;
  #fromBeginning = true;
  /** When the migration began, by the watch's clock; null: it has not. */
  #beganMs: number | null = null;
  #endedMs = 0;
  /** Where the pass that is under way began. */
  #base: Sample | undefined;
  #diagnosis: Diagnosis | undefined;
  /** By QEMU's clock; null: the vCPUs run. */
  #stoppedAt: number | null = null;
  /** By QEMU's clock. */
  #completedAt: number | null = null;
  #lastInfo: MigrationInfo = {};
  #result: WatchedResult | null = null;
  /** Why it failed, in QEMU's words. */
  #why: string | undefined;

  constructor({ identity, settings, limits, tell }: ObserverOptions) {
    this.#identity = identity;
    this.#settings = settings;
    this.#tell = tell;
    this.#rule = new StallRule(limits);
    this.#devices = identity.devices.map((device) => ({ device, states: [] }));
    for (const { id, tellsStates } of identity.devices) {
      if (tellsStates) continue;
      this.warn(`${id} tells no migration states: its QEMU was started without migration-events=on for it`);
    }
    if (!settings.events) {
      this.warn(
        "QEMU tells no migration events (its capability `events` is off): an end that QEMU does not outlive is missed",
      );
    }
  }

  get hasBegun(): boolean {
    return this.#beganMs !== null;
  }

  /** How it has ended; null: it has not. */
  get result(): WatchedResult | null {
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
      if (!told.success) return;
      this.#toldByEvents = true;
      this.#status(told.data.status, nowMs, {});
      if (this.#result === "completed") this.#completedAt ??= at;
    } else if (name === "VFIO_MIGRATION") this.#deviceEvent(data, nowMs);
    else if (name === "STOP") this.#stoppedAt = at;
    else if (name === "RESUME") this.#stoppedAt = null;
  }

  /** QEMU has answered how its migration goes. */
  info(info: MigrationInfo, nowMs: number): void {
    const status = statusOf(info);
    if (!this.hasBegun && IDLE.has(status)) this.#sawIdle = true;
    if (!this.#toldByEvents) this.#status(status, nowMs, info);
    // What is answered of an older migration has no place in this one.
    if (!this.hasBegun || this.#result !== null || IDLE.has(status)) return;
    const sample = sampleOf(info, this.#at(nowMs));
    if (sample === null) return;
    this.#lastInfo = info;
    this.#sample(sample);
  }

  /**
   * QEMU has answered once more, after the end: why, and the last figures. After a failure or a cancel it has no figures, and
   * those of the last sample are kept.
   */
  lastInfo(info: MigrationInfo): void {
    if (statusOf(info) !== this.status) return;
    this.#why ??= info["error-desc"];
    const sample = sampleOf(info, this.#endedMs);
    if (sample === null) return;
    this.#lastInfo = info;
    this.#keep(sample);
    this.#lastRound(sample);
  }

  settings(settings: WatchedSettings, nowMs: number): void {
    for (const name of changesOf(this.#settings, settings)) {
      if (!this.hasBegun || this.#changes.length >= MAX_ENTRIES) break;
      this.#changes.push({ atMs: round(this.#at(nowMs)), setting: SETTING_NAMES[name], to: settings[name] });
    }
    this.#settings = settings;
  }

  /** What was seen. @param ended why the watch ended before the migration did */
  report(migration: string, nowMs: number, ended?: DirtmapError): MigrationReport {
    const atMs = this.#result === null ? this.#at(nowMs) : this.#endedMs;
    const error = this.#errorOf(ended);
    return {
      schemaVersion: 1,
      migration,
      result: this.#result ?? "indeterminate",
      verified: null,
      totalMs: (this.#result === "completed" ? this.#lastInfo["total-time"] : undefined) ?? round(atMs),
      downtimeMs: this.#downtime(),
      bytes: this.#samples.at(-1)?.sentBytes ?? 0,
      phases: this.#phases.map(({ phase, sinceMs }, i) => ({
        phase,
        ms: round((this.#phases[i + 1]?.sinceMs ?? atMs) - sinceMs),
      })),
      rounds: this.#rounds,
      devices: this.#devices.map(({ device }) => deviceReport(device)),
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
    if (this.#result !== null || status === this.status) return;
    if (!this.hasBegun) {
      // What ended before the watch is not what is waited for.
      if (IDLE.has(status)) return;
      this.#fromBeginning = status === "setup" || this.#sawIdle;
      this.#beganMs = nowMs - (this.#fromBeginning ? 0 : (info["total-time"] ?? 0));
    }
    const atMs = this.#at(nowMs);
    if (this.#statuses.length < MAX_ENTRIES) this.#statuses.push({ state: status, atMs: round(atMs) });
    const result = resultOf(status);
    if (result !== null) this.#end(result, atMs, info["error-desc"]);
    else this.#enter(phaseOf(status) ?? this.#phase ?? "connecting", atMs, wordsOf(status));
  }

  #enter(phase: MigrationPhase, atMs: number, text: string | undefined): void {
    if (phase === this.#phase && text === undefined) return;
    if (phase !== this.#phase) this.#phases.push({ phase, sinceMs: atMs });
    this.#tell({ type: "phase", phase, atMs, ...(text === undefined ? {} : { text }) });
  }

  #end(result: WatchedResult, atMs: number, why: string | undefined): void {
    this.#result = result;
    this.#endedMs = atMs;
    this.#why = why;
    if (result === "completed") this.#endStall(atMs);
    this.#tell({ type: "phase", phase: result, atMs, ...(why === undefined ? {} : { text: why }) });
  }

  #keep(sample: Sample): void {
    this.#samples.push(sample);
    if (this.#samples.length > MAX_SAMPLES) this.#samples.shift();
  }

  #sample(sample: Sample): void {
    this.#keep(sample);
    this.#base ??= sample;
    if (this.#phase === "pre-copy") {
      const stall = this.#rule.judge(sample);
      if (sample.pass > this.#base.pass) {
        this.#round(this.#base, sample, "pre-copy", this.#rule.passBytes ?? sample.memoryBytes);
        this.#base = sample;
      }
      this.#judge(sample, stall);
    }
    this.#progress(sample);
  }

  /** What was sent since the newest pass began: most of it in the pause. */
  #lastRound(sample: Sample): void {
    if (this.#base !== undefined) this.#round(this.#base, sample, "stop-copy", 0);
  }

  #round(from: Sample, to: Sample, phase: "pre-copy" | "stop-copy", remaining: number): void {
    const report: RoundReport = {
      round: this.#rounds.length,
      phase,
      pages: Math.max(0, to.pages - from.pages),
      zeroPages: Math.max(0, to.zeroPages - from.zeroPages),
      bytes: Math.max(0, to.sentBytes - from.sentBytes),
      ms: round(Math.max(0, to.atMs - from.atMs)),
      remaining: Math.round(remaining),
      byDevice: {},
    };
    if (this.#rounds.length < MAX_ENTRIES) this.#rounds.push(report);
    this.#tell({ type: "round", round: report });
  }

  #progress(sample: Sample): void {
    const { sent } = ratesOf(this.#samples);
    this.#tell({
      type: "progress",
      atMs: sample.atMs,
      round: this.#rounds.length,
      sentBytes: Math.max(0, sample.sentBytes - (this.#base?.sentBytes ?? 0)),
      remainingBytes: sample.remainingBytes,
      bytesPerSecond: sent === null ? 0 : (sent.low + sent.high) / 2,
      expectedDowntimeMs: sample.expectedDowntimeMs,
      dirtyBytesPerSecond: {},
    });
  }

  #judge(sample: Sample, stall: ReturnType<StallRule["judge"]>): void {
    const { passBytes } = this.#rule;
    const now = diagnose({ samples: this.#samples, passBytes, stall, settings: this.#settings });
    if (now.stalled) this.#noteStall(now);
    else this.#endStall(sample.atMs);
    const before = this.#diagnosis;
    if (before !== undefined && sameVerdict(before, now) && now.atMs - before.atMs < DIAGNOSE_MS) return;
    this.#diagnosis = now;
    this.#tell(now);
  }

  #noteStall({ atMs, reasons }: Diagnosis): void {
    const open = this.#stalls.at(-1);
    if (open?.toMs === null) open.reasons = reasons;
    else if (this.#stalls.length < MAX_ENTRIES) this.#stalls.push({ fromMs: round(atMs), toMs: null, reasons });
  }

  #endStall(atMs: number): void {
    const open = this.#stalls.at(-1);
    if (open !== undefined) open.toMs ??= round(atMs);
  }

  #deviceEvent(data: unknown, nowMs: number): void {
    const told = deviceData.safeParse(data);
    if (!told.success || !this.hasBegun) return;
    const { "qom-path": path, "device-state": state } = told.data;
    const seen = this.#devices.find(({ device }) => device.path === path);
    if (seen === undefined) return;
    const before = seen.states.at(-1)?.state;
    const atMs = this.#at(nowMs);
    if (seen.states.length < MAX_ENTRIES) seen.states.push({ state, atMs: round(atMs) });
    this.#tell({ type: "device", atMs, device: seen.device.id, state });
    if (state === "running" && before !== undefined && LEAVING.has(before) && UNDER_WAY.has(this.status)) {
      this.warn(
        `${seen.device.id} went from '${before}' to 'running' during the migration: QEMU tells a device's recovery so`,
      );
    }
  }

  /** QEMU's own figure; if it ended before it could be asked, the time between its two events. */
  #downtime(): number | null {
    if (this.#result !== "completed") return null;
    if (this.#lastInfo.downtime !== undefined) return this.#lastInfo.downtime;
    if (this.#stoppedAt === null || this.#completedAt === null) return null;
    return round(Math.max(0, this.#completedAt - this.#stoppedAt));
  }

  #errorOf(ended: DirtmapError | undefined): MigrationReport["error"] {
    if (this.#result === "failed") {
      return {
        code: "QEMU_MIGRATION_FAILED",
        message: `the migration has failed: ${this.#why ?? "QEMU does not say why"}`,
        remedy: "see the logs of both QEMUs",
      };
    }
    if (this.#result === "cancelled") return { code: "CANCELLED", message: "the migration was cancelled" };
    if (this.#result !== null || ended === undefined) return undefined;
    return { code: ended.code, message: explain(ended) };
  }

  #watched(): WatchedReport {
    return {
      name: this.#identity.name,
      uuid: this.#identity.uuid,
      fromBeginning: this.#fromBeginning,
      statuses: this.#statuses,
      devices: this.#devices.map(({ device, states }) => ({ id: device.id, states })),
      deviceBytes: this.#samples.at(-1)?.deviceBytes ?? null,
      settings: namedSettings(this.#settings),
      changes: this.#changes,
      stalls: this.#stalls,
    };
  }
}

function deviceReport({ id, model }: WatchedDevice): DeviceReport {
  return {
    id,
    model,
    tracker: "vmm",
    granule: null,
    reason: "QEMU tracks and moves it, and was only watched",
    alternatives: [],
    pagesReported: null,
    pagesExclusive: null,
    readMs: 0,
    suspendedMs: 0,
  };
}

function sameVerdict(a: Diagnosis, b: Diagnosis): boolean {
  const codes = ({ reasons }: Diagnosis) => reasons.map(({ code }) => code).join();
  return a.converging === b.converging && a.stalled === b.stalled && codes(a) === codes(b);
}
