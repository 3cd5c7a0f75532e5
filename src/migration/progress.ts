import { PAGE_SIZE } from "../memory/address.js";
import type { DirtyRead } from "../tracking/dirty-source.js";
import type { PhaseClock } from "./clock.js";
import type { PageSender } from "./data-plane.js";
import { publish } from "./events.js";

/** Four times a second is what a person can follow. */
const INTERVAL_MS = 250;

/** Publishes how a round goes on, a few times a second, and at once when something new is known. */
export class ProgressMeter {
  readonly #clock: PhaseClock;
  #timer: NodeJS.Timeout | undefined;
  #sender: PageSender | undefined;
  #round = 0;
  #roundBytes = 0;
  #roundSince = 0;
  #expectedDowntimeMs: number | null = null;
  #readSince: number | undefined;
  #dirtyBytesPerSecond: Record<string, number> = {};

  constructor(clock: PhaseClock) {
    this.#clock = clock;
  }

  /** A round begins: `bytes` are to be sent. */
  begin(round: number, sender: PageSender, bytes: number): void {
    this.#round = round;
    this.#sender = sender;
    this.#roundBytes = bytes;
    this.#roundSince = performance.now();
    this.#timer ??= setInterval(() => this.#publish(), INTERVAL_MS).unref();
  }

  /** The trackers were read after a round, and a downtime estimated. */
  noteRead(expectedDowntimeMs: number, read: DirtyRead): void {
    this.#expectedDowntimeMs = expectedDowntimeMs;
    const now = performance.now();
    if (this.#readSince !== undefined) {
      const seconds = Math.max(now - this.#readSince, 1) / 1000;
      this.#dirtyBytesPerSecond = Object.fromEntries(
        Object.entries(read.byOwner).map(([owner, { reported }]) => [owner, (reported * PAGE_SIZE) / seconds]),
      );
    }
    this.#readSince = now;
    this.#publish();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #publish(): void {
    const sent = this.#sender?.progress() ?? { pages: 0, bytes: 0 };
    const seconds = Math.max(performance.now() - this.#roundSince, 1) / 1000;
    publish({
      type: "progress",
      atMs: this.#clock.elapsedMs,
      round: this.#round,
      sentBytes: sent.bytes,
      remainingBytes: Math.max(0, this.#roundBytes - sent.pages * PAGE_SIZE),
      bytesPerSecond: sent.bytes / seconds,
      expectedDowntimeMs: this.#expectedDowntimeMs,
      dirtyBytesPerSecond: this.#dirtyBytesPerSecond,
    });
  }
}
