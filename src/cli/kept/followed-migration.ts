import { explain } from "../../errors.js";
import type { ReadEvent } from "../../migration/events.js";
import type { MigrationReport } from "../../migration/report.js";
import type { RunConditions } from "../../observe/conditions.js";
import { type PublishedFeed, publishFeed } from "../../observe/feed/publish.js";
import type { RunHeader } from "../../observe/feed/schema.js";
import { LiveView } from "../../observe/live-view.js";
import type { ReportOption, StoreOption } from "../input/options/places.js";
import { err, mayColor } from "../output.js";
import { migrationDocument } from "../text/migration-document.js";
import { leaveReport } from "./leave-report.js";
import { keepMigration, ReadRecorder } from "./record-run.js";

/** What of a migration is wanted besides that it is done. */
export interface FollowOptions extends ReportOption {
  readonly feed: boolean;
  readonly quiet?: boolean;
  /** Somebody else migrates, and it is only watched. */
  readonly watched?: boolean;
}

/**
 * A migration, whoever moves its memory, as it is shown while it goes on (a live view, a live feed) and kept afterwards (in the
 * store, as a report). None of that may harm it: what goes wrong is a note.
 */
export class FollowedMigration implements AsyncDisposable {
  readonly #header: RunHeader;
  readonly #options: FollowOptions;
  readonly #store: StoreOption;
  readonly #plainNote: (text: string) => void;
  readonly #view: LiveView | undefined;
  readonly #recorder: ReadRecorder | undefined;
  #feed: PublishedFeed | undefined;

  private constructor(header: RunHeader, options: FollowOptions, store: StoreOption, note: (text: string) => void) {
    this.#header = header;
    this.#options = options;
    this.#store = store;
    this.#plainNote = note;
    const { devices, downtimeLimitMs = 0 } = header;
    const { quiet = false, watched = false } = options;
    if (!quiet) {
      this.#view = new LiveView({ stream: err, color: mayColor(err), devices, downtimeLimitMs, watched });
    }
    // Where nobody listens, the migration counts nothing for it.
    if (store.store !== false || options.report !== undefined) this.#recorder = new ReadRecorder();
  }

  /** @param store as `storeOrNone` found it */
  static async begin(
    header: RunHeader,
    { options, store, note }: { options: FollowOptions; store: StoreOption; note: (text: string) => void },
  ): Promise<FollowedMigration> {
    const followed = new FollowedMigration(header, options, store, note);
    if (options.feed) {
      followed.#feed = await publishFeed(header).catch((error: unknown) => {
        followed.note(explain(error));
        return undefined;
      });
    }
    return followed;
  }

  /** Writes a line that stays, above the view. */
  note(text: string): void {
    if (this.#view === undefined) this.#plainNote(text);
    else this.#view.note(text);
  }

  /** Makes room on the terminal for something else. */
  clear(): void {
    this.#view?.clear();
  }

  /** It is over: keeps what was wanted. */
  leave(report: MigrationReport, conditions: RunConditions): void {
    this.#view?.[Symbol.dispose]();
    const note = (text: string) => this.note(text);
    const reads: readonly ReadEvent[] = this.#recorder?.reads ?? [];
    keepMigration(this.#store, { header: this.#header, report, reads, conditions }, note);
    if (this.#options.report === undefined) return;
    const { scenario, memoryBytes } = this.#header;
    leaveReport(this.#options.report, migrationDocument(report, { scenario, memoryBytes, reads, conditions }), note);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#view?.[Symbol.dispose]();
    this.#recorder?.[Symbol.dispose]();
    await this.#feed?.[Symbol.asyncDispose]();
  }
}
