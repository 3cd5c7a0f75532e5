import { DirtmapError, UsageError } from "../../errors.js";
import { pause } from "../../migration/deadline.js";
import type { MigrationEvent } from "../../migration/events.js";
import { type MigrationReport, WATCH_ENDED } from "../../migration/report.js";
import type { EventStream } from "../qmp/event-stream.js";
import type { Qemu } from "../qmp/qemu.js";
import { type GuestIdentity, identify } from "./guest-identity.js";
import { MigrationObserver } from "./observer.js";
import { readSettings } from "./settings.js";
import type { StallLimits } from "./stall-rule.js";

/** Settings are read anew this often: QEMU tells no change of them. */
const SETTINGS_MS = 2000;
/** After the end, devices still tell states: this long they are waited for. */
const AFTERWARDS_MS = 500;

/** How a migration is watched. */
export interface WatchGuestOptions {
  readonly limits: StallLimits;
  /** QEMU is asked this often, besides after each of its events. */
  readonly intervalMs: number;
  /** The migration's id, in its report. */
  readonly migration: string;
  /** Ends the watch; the migration goes on. */
  readonly signal: AbortSignal;
  /** Nothing is under way yet. */
  onWaiting(identity: GuestIdentity): void;
  /** A migration has begun, or was found: what it publishes is held back until this resolves. */
  onBegin(identity: GuestIdentity): Promise<void>;
  /** Takes what the migration's watch publishes. */
  tell(event: MigrationEvent): void;
}

/**
 * Waits for a migration of a QEMU, or takes one that is under way, and watches it to its end. Only asks: nothing of QEMU is set.
 * @returns its report; null if the signal came before any had begun
 * @throws UsageError `WRONG_SIDE` for a QEMU that waits for a guest; before a migration has begun, DirtmapError of {@link Qemu}
 */
export async function watchGuest(qemu: Qemu, options: WatchGuestOptions): Promise<MigrationReport | null> {
  const { limits, migration, signal } = options;
  using events = qemu.events();
  const [identity, settings, { status }] = await Promise.all([identify(qemu), readSettings(qemu), qemu.status()]);
  if (status === "inmigrate") {
    throw new UsageError(`QEMU at ${qemu.name} waits for a guest: it is the destination of a migration`, {
      code: "WRONG_SIDE",
      remedy: "watch the QEMU that the guest runs in",
    });
  }
  const held: MigrationEvent[] = [];
  let tell = (event: MigrationEvent): void => void held.push(event);
  const observer = new MigrationObserver({ identity, settings, limits, tell: (event) => tell(event) });
  const listening = new Listening(events, observer);
  let isWaiting = false;
  let settingsAt = performance.now();

  const ask = async () => {
    observer.info(await qemu.migration(), performance.now());
    if (performance.now() - settingsAt < SETTINGS_MS) return;
    settingsAt = performance.now();
    observer.settings(await readSettings(qemu), settingsAt);
  };
  const begin = async () => {
    await options.onBegin(identity);
    tell = options.tell;
    for (const event of held.splice(0)) tell(event);
  };

  let hasBegun = false;
  let lost: DirtmapError | undefined;
  while (observer.result === null && lost === undefined && !signal.aborted) {
    listening.rest = new AbortController();
    try {
      await ask();
    } catch (error) {
      if (!observer.hasBegun) throw error;
      const { code } = error as { code?: string };
      if (code === "QMP_TIMED_OUT") observer.warn("QEMU did not answer in time: it may save the devices' states");
      else {
        lost = lostSight(error as Error, observer.status);
        // The event of the end may be on its way yet.
        await listening.allTold(signal);
      }
    }
    if (observer.hasBegun && !hasBegun) await begin();
    hasBegun = observer.hasBegun;
    if (!hasBegun && !isWaiting) options.onWaiting(identity);
    isWaiting = !hasBegun;
    if (observer.result === null && lost === undefined) {
      await pause(options.intervalMs, AbortSignal.any([listening.rest.signal, signal]));
    }
  }
  if (!hasBegun) return null;
  if (observer.result !== null) {
    await listening.allTold(signal);
    const info = await qemu.migration().catch(() => null);
    if (info === null) observer.warn("QEMU has ended before it told its last figures: those before are reported");
    else observer.lastInfo(info);
  }
  return observer.report(migration, performance.now(), lost ?? stopped(observer.status));
}

/** Hands events to an observer as they come. */
class Listening {
  /** The rest before the next question, which an event cuts short. */
  rest = new AbortController();
  readonly #ended: Promise<void>;

  constructor(events: EventStream, observer: MigrationObserver) {
    const take = async () => {
      for await (const event of events) {
        observer.event(event, performance.now());
        this.rest.abort();
      }
    };
    // That the connection has ended is noticed by the next question, too.
    this.#ended = take().catch(() => this.rest.abort());
  }

  /** Resolves once no more events come, or after a while. */
  async allTold(signal: AbortSignal): Promise<void> {
    await Promise.race([this.#ended, pause(AFTERWARDS_MS, signal)]);
  }
}

function lostSight(cause: Error, status: string): DirtmapError {
  return new DirtmapError(`QEMU was lost sight of while its migration was '${status}': ${cause.message}`, {
    code: "QEMU_LOST",
    remedy: "see at the destination whether the guest runs there, and QEMU's logs",
    cause,
  });
}

function stopped(status: string): DirtmapError {
  return new DirtmapError(`the watch was ended while the migration was '${status}'`, {
    code: WATCH_ENDED,
    remedy: "watch it again: a migration can be watched from its middle",
  });
}
