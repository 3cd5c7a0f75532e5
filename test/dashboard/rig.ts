import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import sqlite from "node-sqlite3-wasm";
import { type Browser, chromium } from "playwright-core";
import { evidenceIn } from "../../src/cli/kept/dashboard-evidence.js";
import { type NewBenchmark, type NewRun, openStore } from "../../src/evidence/store/store.js";
import { type MigrationEvent, publish } from "../../src/migration/events.js";
import { type PublishedFeed, publishFeed } from "../../src/observe/feed/publish.js";
import type { RunHeader } from "../../src/observe/feed/schema.js";
import { type DashboardServer, type ServeOptions, serveDashboard } from "../../src/observe/server/server.js";

/* A dashboard with evidence of its own, and runs in progress that tests tell the story of. */

const PAGE = fileURLToPath(new URL("../../web", import.meta.url));

/** Where Debian's package and other systems put it; `CHROMIUM` names another. */
const CHROMIUM = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** The browser's program; undefined: none is installed. */
export const chromiumPath = CHROMIUM.find((path) => path !== undefined && existsSync(path));

if (chromiumPath === undefined) {
  // In CI it is there, or the run is no proof of anything.
  if (process.env.CI) throw new Error("there is no Chromium: install Debian's package `chromium`");
  console.warn("skipped: the tests of the dashboard's page need a browser (apt-get install chromium)");
}

/** Starts the browser. */
export async function openBrowser(): Promise<Browser> {
  return await chromium.launch({ executablePath: chromiumPath ?? "", args: ["--no-sandbox", "--disable-gpu"] });
}

/** A server on a free port, whose store and feeds are its own. */
export class Rig implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-dash-"));
  readonly store = join(this.folder, "evidence.db");
  readonly feeds = join(this.folder, "feeds");
  readonly notes: string[] = [];
  #server: DashboardServer | undefined;
  readonly #open: PublishedFeed[] = [];

  static async start(options: Partial<ServeOptions> = {}): Promise<Rig> {
    const rig = new Rig();
    rig.#server = await serveDashboard({
      address: { host: "127.0.0.1", port: 0 },
      evidence: evidenceIn(() => openStore(rig.store)),
      feedFolder: rig.feeds,
      page: PAGE,
      note: (text) => rig.notes.push(text),
      ...options,
    });
    return rig;
  }

  get url(): string {
    return this.#server?.url ?? "";
  }

  keep(...runs: readonly NewRun[]): number[] {
    using store = openStore(this.store);
    return runs.map((run) => store.saveRun(run));
  }

  /** Makes a run one that an older Dirtmap kept. */
  forgetConditions(id: number): void {
    const db = new sqlite.Database(this.store);
    db.exec("PRAGMA locking_mode = EXCLUSIVE");
    db.run("UPDATE run SET conditions = NULL WHERE id = ?", [id]);
    db.close();
  }

  keepBenchmark(benchmark: NewBenchmark): number {
    using store = openStore(this.store);
    return store.saveBenchmark(benchmark);
  }

  /** A run begins, and tells this. */
  async begin(header: RunHeader, events: readonly MigrationEvent[] = []): Promise<PublishedFeed> {
    const feed = await publishFeed(header, { folder: this.feeds });
    this.#open.push(feed);
    for (const event of events) publish(event);
    return feed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const feed of this.#open) await feed[Symbol.asyncDispose]();
    await this.#server?.[Symbol.asyncDispose]();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
