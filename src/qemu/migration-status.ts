import { setTimeout as sleep } from "node:timers/promises";
import { DirtmapError } from "../errors.js";
import type { EventStream } from "./qmp/event-stream.js";
import { isRefusal, type MigrationInfo, type Qemu, type RunState } from "./qmp/qemu.js";

/** QEMU is asked this often, besides after each of its events: not every change is told, and progress never is. */
const POLL_MS = 250;

/** QEMU answers within milliseconds; one that takes so long stands still. */
const STUCK_MS = 2000;

/** After a migration has ended, QEMU takes a moment until its vCPUs run again. */
const RUNS_AGAIN_MS = 5000;

/** From `migrate_cancel` until the migration is over. */
const CANCEL_MS = 30_000;

/** Statuses of a migration (MigrationStatus) in which nothing is under way. */
export const IDLE: ReadonlySet<string> = new Set(["none", "completed", "failed", "cancelled"]);

/** Statuses that a migration does not come back from. */
const ENDED: ReadonlySet<string> = new Set(["failed", "cancelled", "completed"]);

/** The status of a migration; `none` before the first. */
export function statusOf(info: MigrationInfo): string {
  return info.status ?? "none";
}

/** The guest's state, once a migration that is over has let go of it. */
export async function stateAfterMigration(qemu: Qemu): Promise<RunState> {
  const until = performance.now() + RUNS_AGAIN_MS;
  for (;;) {
    const state = await qemu.status();
    if (state.status !== "finish-migrate" || performance.now() > until) return state;
    await sleep(20);
  }
}

/** Follows the migrations of one QEMU. */
export class MigrationWatch implements Disposable {
  readonly #qemu: Qemu;
  readonly #events: EventStream;
  /** Resolves with the next event; kept from one wait to the next, so that none is missed. */
  #next: Promise<unknown>;

  constructor(qemu: Qemu) {
    this.#qemu = qemu;
    this.#events = qemu.events();
    this.#next = this.#following();
  }

  /**
   * Waits until the migration has one of these statuses.
   * @param options.onInfo called with what QEMU tells while it lasts
   * @throws DirtmapError `QEMU_MIGRATION_FAILED` for one that ends otherwise, `TIMED_OUT`; the signal's reason
   */
  async until(
    wanted: Iterable<string>,
    { signal, limitMs, onInfo = () => {} }: WaitOptions = {},
  ): Promise<MigrationInfo> {
    const statuses = new Set(wanted);
    const until = performance.now() + (limitMs ?? Number.POSITIVE_INFINITY);
    for (;;) {
      signal?.throwIfAborted();
      const info = await this.#qemu.migration();
      onInfo(info);
      const status = statusOf(info);
      if (statuses.has(status)) return info;
      if (ENDED.has(status)) throw this.#ended(status, info["error-desc"]);
      if (performance.now() > until) {
        throw new DirtmapError(`the migration of QEMU at ${this.#qemu.name} is '${status}' after ${limitMs} ms`, {
          code: "TIMED_OUT",
          attempted: `wait until it is ${[...statuses].join(" or ")}`,
        });
      }
      if (await firstOf(this.#next, POLL_MS, signal)) this.#next = this.#following();
    }
  }

  /** Cancels the migration, if one is under way, and waits until it is over. @throws as {@link until} does */
  async cancel(): Promise<void> {
    if (IDLE.has(statusOf(await this.#unstuck()))) return;
    await this.#qemu.migrateCancel();
    await this.until(IDLE, { limitMs: CANCEL_MS });
  }

  [Symbol.dispose](): void {
    this.#events[Symbol.dispose]();
  }

  /**
   * What QEMU answers, once it does. While it sends the rest, QEMU's main loop waits for the destination's. If that stands still, so does this QEMU, and answers
   * nothing until the stream between them ends.
   */
  async #unstuck(): Promise<MigrationInfo> {
    try {
      return await this.#qemu.migration({ limitMs: STUCK_MS });
    } catch (error) {
      if ((error as { code?: string }).code !== "QMP_TIMED_OUT") throw error;
      await this.#qemu.yankMigration().catch((refusal: unknown) => {
        if (!isRefusal(refusal)) throw refusal;
      });
      return await this.#qemu.migration();
    }
  }

  #following(): Promise<unknown> {
    const next = this.#events.next();
    // Nobody may wait for it: a connection that ends is noticed by the next command, too.
    next.catch(() => {});
    return next;
  }

  #ended(status: string, why: string | undefined): DirtmapError {
    return new DirtmapError(
      `the migration of QEMU at ${this.#qemu.name} has ${status}${why === undefined ? "" : `: ${why}`}`,
      { code: "QEMU_MIGRATION_FAILED", remedy: "see the logs of both QEMUs" },
    );
  }
}

export interface WaitOptions {
  readonly signal?: AbortSignal | undefined;
  readonly limitMs?: number;
  readonly onInfo?: ((info: MigrationInfo) => void) | undefined;
}

/** True if the promise has resolved, false if the time is over, or the signal has fired, before. */
async function firstOf(promise: Promise<unknown>, ms: number, signal: AbortSignal | undefined): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  let onAbort: (() => void) | undefined;
  try {
    return await Promise.race([
      promise.then(() => true),
      new Promise<boolean>((resolve) => {
        timer = setTimeout(resolve, ms, false);
        onAbort = () => resolve(false);
        signal?.addEventListener("abort", onAbort, { once: true });
      }),
    ]);
  } finally {
    clearTimeout(timer);
    if (onAbort !== undefined) signal?.removeEventListener("abort", onAbort);
  }
}
