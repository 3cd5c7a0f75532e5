import { EventEmitter } from "node:events";
import { setTimeout } from "node:timers/promises";
import { explain } from "../../errors.js";
import { Backlog } from "../feed/backlog.js";
import { type FollowedFeed, followFeed, runsWithFeed } from "../feed/follow.js";
import type { FeedEvent, FeedHeader } from "../feed/schema.js";

/** How often the folder of feeds is looked at for new ones. */
const LOOK_MS = 500;
/** What is kept of each run, for pages that come later. */
const MAX_KEPT_BYTES = 8 * 2 ** 20;
/** Until a feed that made no sense is tried again. */
const AGAIN_MS = 10_000;
/** Runs that are followed at a time. */
const MAX_RUNS = 64;

/** A run in progress. */
export interface LiveRun {
  readonly header: FeedHeader;
  readonly backlog: Backlog;
}

interface LiveRunEvents {
  begin: [run: LiveRun];
  event: [run: LiveRun, event: FeedEvent, line: string];
  end: [run: LiveRun];
  /** What is wrong with the folder or a feed, in one line; each once. */
  problem: [text: string];
}

/** Follows the feeds of all of this user's runs, as they come and go, until it is disposed. */
export class LiveRuns extends EventEmitter<LiveRunEvents> implements AsyncDisposable {
  readonly #folder: string;
  readonly #runs = new Map<string, LiveRun>();
  /** Runs that are being followed or connected to. */
  readonly #following = new Map<string, Promise<void>>();
  readonly #stop = new AbortController();
  readonly #told = new Set<string>();
  readonly #timer: NodeJS.Timeout;

  constructor(folder: string) {
    super();
    // One listener per page that watches, and they are counted where they are let in.
    this.setMaxListeners(0);
    this.#folder = folder;
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
    setImmediate(() => this.#look());
  }

  /** Runs in progress, the newest first. */
  get runs(): LiveRun[] {
    return [...this.#runs.values()].sort((a, b) => (a.header.startedAt < b.header.startedAt ? 1 : -1));
  }

  run(id: string): LiveRun | undefined {
    return this.#runs.get(id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    this.#stop.abort();
    await Promise.all(this.#following.values());
  }

  #look(): void {
    if (this.#stop.signal.aborted) return;
    try {
      for (const run of runsWithFeed(this.#folder)) {
        if (this.#following.has(run) || this.#following.size >= MAX_RUNS) continue;
        this.#following.set(
          run,
          this.#follow(run).finally(() => this.#following.delete(run)),
        );
      }
    } catch (error) {
      this.#problem(error);
    }
  }

  async #follow(id: string): Promise<void> {
    let live: LiveRun | undefined;
    try {
      using feed: FollowedFeed = await followFeed(id, { folder: this.#folder, signal: this.#stop.signal });
      live = { header: feed.header, backlog: new Backlog(MAX_KEPT_BYTES) };
      this.#runs.set(id, live);
      this.emit("begin", live);
      for await (const event of feed) {
        const line = JSON.stringify(event);
        live.backlog.add(event.type, line);
        this.emit("event", live, event, line);
      }
    } catch (error) {
      const gone = (error as { code?: string }).code === "NO_SUCH_RUN" || this.#stop.signal.aborted;
      if (gone) return;
      this.#problem(error);
      live = this.#end(live);
      // A feed that makes no sense will make none at once again.
      await setTimeout(AGAIN_MS, undefined, { signal: this.#stop.signal }).catch(() => {});
    } finally {
      this.#end(live);
    }
  }

  #end(live: LiveRun | undefined): undefined {
    if (live === undefined) return;
    this.#runs.delete(live.header.run);
    this.emit("end", live);
  }

  #problem(error: unknown): void {
    const text = explain(error);
    if (this.#told.has(text) || this.#told.size >= MAX_RUNS) return;
    this.#told.add(text);
    this.emit("problem", text);
  }
}
