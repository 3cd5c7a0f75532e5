import { DirtmapError } from "../../errors.js";
import { pause } from "../../migration/deadline.js";
import type { MigrationEvent } from "../../migration/events.js";
import type { MigrationReport } from "../../migration/report.js";
import { IDLE, statusOf } from "../migration-status.js";
import type { Qemu } from "../qmp/qemu.js";
import { followFile } from "./follow-file.js";
import { type GuestIdentity, identify } from "./guest-identity.js";
import { readLogLine } from "./log-line.js";
import { MigrationObserver } from "./observer.js";
import { readSettings, type WatchedSettings } from "./settings.js";
import type { StallLimits } from "./stall-rule.js";
import { readTraceLine } from "./trace-line.js";

/** Settings are read anew this often: QEMU tells no change of them. */
const SETTINGS_MS = 2000;
/** After the end, events of devices still come, and lines of logs. */
const AFTERWARDS_MS = 500;

/** How a migration is watched. */
export interface WatchGuestOptions {
  readonly limits: StallLimits;
  /** QEMU is asked this often, besides after each of its events. */
  readonly intervalMs: number;
  /** QEMU's trace log. */
  readonly trace?: string | undefined;
  /** QEMU's standard error. */
  readonly log?: string | undefined;
  /** The migration's id, in its report. */
  readonly migration: string;
  /** Ends the watch; the migration goes on. */
  readonly signal: AbortSignal;
  /** Told where nothing is under way yet. */
  onWaiting(identity: GuestIdentity): void;
  /** A migration has begun, or was found: what it publishes is held back until this resolves. */
  onBegin(identity: GuestIdentity, settings: WatchedSettings): Promise<void>;
  /** Takes what the migration's watch publishes. */
  tell(event: MigrationEvent): void;
}

/**
 * Waits for a migration of a QEMU, or takes one that is under way, and watches it to its end. Only asks: nothing of QEMU is set.
 * @returns its report; null if the signal came before any had begun
 * @throws DirtmapError of {@link Qemu} before one has begun; UsageError of {@link followFile}
 */
export async function watchGuest(qemu: Qemu, options: WatchGuestOptions): Promise<MigrationReport | null> {
  const { limits, intervalMs, migration, signal } = options;
  const over = new AbortController();
  const stop = () => over.abort();
  signal.addEventListener("abort", stop, { once: true });
  const files: Promise<void>[] = [];
  using events = qemu.events();
  try {
    const [identity, settings, status] = await Promise.all([identify(qemu), readSettings(qemu), qemu.status()]);
    const held: MigrationEvent[] = [];
    let tell = (event: MigrationEvent): void => void held.push(event);
    const observer = new MigrationObserver({ identity, settings, limits, tell: (event) => tell(event) });
    if (status.status === "inmigrate") observer.incoming();

    // Whatever comes first ends a pause between two questions.
    let wake = new AbortController();
    const pump = (async () => {
      for await (const event of events) {
        observer.event(event, performance.now());
        wake.abort();
      }
    })();
    // That QEMU has ended is noticed by the next question, too.
    pump.catch(() => wake.abort());
    const ended = new AbortController();
    const follow = (path: string | undefined, onLine: (line: string) => void) => {
      if (path !== undefined) files.push(followFile(path, onLine, ended.signal));
    };
    follow(options.trace, (line) => {
      const fact = readTraceLine(line);
      if (fact !== null) observer.trace(fact, performance.now());
    });
    follow(options.log, (line) => {
      const failure = readLogLine(line);
      if (failure !== null) observer.failure(failure);
    });
    const broken = Promise.all(files);
    broken.catch(() => wake.abort());

    let isWaiting = false;
    let why: DirtmapError | undefined;
    let settingsAt = performance.now();
    while (observer.result === null && !over.signal.aborted) {
      wake = new AbortController();
      try {
        const info = await qemu.migration();
        if (!observer.hasBegun && IDLE.has(statusOf(info))) {
          observer.idle();
          if (!isWaiting) options.onWaiting(identity);
          isWaiting = true;
        }
        const isFirst = !observer.hasBegun;
        observer.info(info, performance.now());
        if (isFirst && observer.hasBegun) {
          observer.settings(await readSettings(qemu), performance.now());
          await options.onBegin(identity, settings);
          tell = options.tell;
          for (const event of held.splice(0)) tell(event);
        }
        if (performance.now() - settingsAt >= SETTINGS_MS) {
          settingsAt = performance.now();
          observer.settings(await readSettings(qemu), settingsAt);
        }
      } catch (error) {
        if (!observer.hasBegun) throw error;
        if (observer.result !== null) break;
        if ((error as { code?: string }).code !== "QMP_TIMED_OUT") {
          why = hasEnded(error as Error, observer.status);
          break;
        }
        observer.warn("QEMU did not answer for 10 s: it may do so while it saves the devices' states");
      }
      if (observer.result === null) await pause(intervalMs, AbortSignal.any([wake.signal, over.signal]));
    }
    if (!observer.hasBegun) return null;
    if (observer.result !== null) {
      await pause(AFTERWARDS_MS, over.signal);
      const info = await qemu.migration().catch(() => null);
      if (info !== null) observer.reason(info);
    } else why ??= stopped(observer.status);
    ended.abort();
    await broken;
    return observer.report(migration, performance.now(), why);
  } finally {
    signal.removeEventListener("abort", stop);
    await Promise.allSettled(files);
  }
}

function hasEnded(cause: Error, status: string): DirtmapError {
  return new DirtmapError(`QEMU was lost sight of while its migration was '${status}': ${cause.message}`, {
    code: "QEMU_LOST",
    remedy: "see at the destination whether the guest runs there, and QEMU's logs",
    cause,
  });
}

function stopped(status: string): DirtmapError {
  return new DirtmapError(`the watch was ended while the migration was '${status}'`, {
    code: "WATCH_ENDED",
    remedy: "watch it again: a migration can be watched from its middle",
  });
}
