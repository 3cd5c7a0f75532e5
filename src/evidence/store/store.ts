import { rmdirSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import sqlite from "node-sqlite3-wasm";
import { DirtmapError, UsageError } from "../../errors.js";
import type { MachineReport } from "../../machine-report.js";
import type { ReadEvent } from "../../migration/events.js";
import type { MigrationReport } from "../../migration/report.js";
import { makeFolder } from "../../sys/output-file.js";
import type { DesignsResult } from "../designs/result.js";
import type { TrackerBenchmark } from "../trackers/result.js";
import { lockDatabase } from "./database-lock.js";
import { MIGRATIONS, STORE_VERSION } from "./schema.js";

/*
 * The evidence that is kept: benchmarks, and what runs of machines showed. One SQLite file, opened late and closed early:
 * whoever has it open has it alone.
 *
 * The binding's file system locks by making a folder, `FILE.lock`, and takes any such folder for another's lock, its own
 * included: it would never roll a killed writer's journal back, and would wait forever for a killed writer's lock. So the
 * lock is ours (database-lock.ts); under it the folder is nobody's and is removed, and changes go to a write-ahead log,
 * whose recovery asks nobody. WAL without shared memory is what SQLite offers to an exclusive user.
 */

/** How long to wait for another process that is writing. */
const WAIT_MS = 5000;
/** What a run's reads may unpack to. */
const MAX_JSON_BYTES = 256 * 2 ** 20;
/** "Dirt" in ASCII, in the header of each of our files (PRAGMA application_id). */
const APPLICATION_ID = 0x44697274;
/** Rows of a list, unless fewer are asked for. */
const MAX_ROWS = 1000;

/** A benchmark to be kept. */
export interface NewBenchmark {
  readonly kind: string;
  readonly host: string;
  readonly scenario: string;
  readonly machine: MachineReport;
  /** ISO 8601, UTC. */
  readonly takenAt: string;
  readonly result: TrackerBenchmark | DesignsResult;
}

export interface BenchmarkSummary extends Omit<NewBenchmark, "result" | "machine"> {
  readonly id: number;
}

export interface StoredBenchmark extends BenchmarkSummary {
  readonly machine: unknown;
  readonly result: unknown;
}

/** A run to be kept: a migration, or a machine that was watched. */
export interface NewRun {
  readonly kind: string;
  /** How it was called while it ran: a migration's id. */
  readonly name: string;
  readonly scenario: string;
  readonly host: string;
  /** ISO 8601, UTC. */
  readonly startedAt: string;
  /** `completed`, `failed` … */
  readonly result: string;
  /** Its devices and memory, as its live feed says them. */
  readonly header: object;
  readonly report: MigrationReport;
  /** Reads of the trackers, in order. */
  readonly reads: readonly ReadEvent[];
  /** The conditions that its figures depend on: bandwidth, policy, machine … */
  readonly conditions: object;
}

export interface RunSummary extends Omit<NewRun, "header" | "report" | "reads" | "conditions"> {
  readonly id: number;
  readonly totalMs: number | null;
  readonly downtimeMs: number | null;
}

export interface StoredRun extends RunSummary {
  readonly header: unknown;
  readonly report: unknown;
  readonly reads: unknown;
  /** null: kept by a Dirtmap that did not record them. */
  readonly conditions: unknown;
}

/** `$XDG_DATA_HOME/dirtmap/evidence.db`, or below `~/.local/share`. */
export function defaultStorePath(): string {
  const home = process.env.XDG_DATA_HOME;
  const data = home === undefined || home === "" ? join(homedir(), ".local", "share") : home;
  return join(data, "dirtmap", "evidence.db");
}

/**
 * Opens the store, alone: others wait until it is disposed. Makes it where there is none, and brings an older one up to
 * date. Blocks the thread while another process has it, for at most `waitMs`.
 * @throws UsageError `STORE_TOO_NEW`, `NO_STORE` (no database, or one of something else), `STORE_BUSY`
 */
export function openStore(path = defaultStorePath(), { waitMs = WAIT_MS }: { waitMs?: number } = {}): Store {
  return new Store(resolve(path), waitMs);
}

export class Store implements Disposable {
  readonly path: string;
  readonly #lock: Disposable;
  readonly #db: sqlite.Database;

  constructor(path: string, waitMs: number) {
    this.path = path;
    const lock = lockedDatabase(path, waitMs);
    let db: sqlite.Database | undefined;
    try {
      removeAbandonedLock(path);
      db = new sqlite.Database(path);
      prepare(db, path);
    } catch (error) {
      db?.close();
      lock[Symbol.dispose]();
      throw error instanceof DirtmapError ? error : noStore(path, error);
    }
    this.#lock = lock;
    this.#db = db;
  }

  /** Keeps a benchmark. Returns its id. @throws DirtmapError `STORE_FAILED`: a full disk */
  saveBenchmark({ kind, host, scenario, machine, takenAt, result }: NewBenchmark): number {
    const values = [kind, host, scenario, json(machine), takenAt, json(result)];
    const columns = "kind, host, scenario, machine, taken_at, result";
    return this.#insert(`INSERT INTO benchmark (${columns}) VALUES (?, ?, ?, ?, ?, ?)`, values);
  }

  /** Benchmarks, the newest first, of one kind if given. @param limit at most 1000 */
  benchmarks({ kind, limit = MAX_ROWS }: { kind?: string; limit?: number } = {}): BenchmarkSummary[] {
    return this.#all<BenchmarkSummary>(
      `SELECT id, kind, host, scenario, taken_at AS takenAt FROM benchmark
       WHERE ?1 IS NULL OR kind = ?1 ORDER BY id DESC LIMIT ?2`,
      [kind ?? null, Math.min(limit, MAX_ROWS)],
    );
  }

  /** One benchmark. @throws UsageError `NO_SUCH_BENCHMARK` */
  benchmark(id: number): StoredBenchmark {
    const row = this.#get(
      "SELECT id, kind, host, scenario, machine, taken_at AS takenAt, result FROM benchmark WHERE id = ?",
      id,
    );
    if (row === null) {
      throw new UsageError(`the store has no benchmark ${id}`, {
        code: "NO_SUCH_BENCHMARK",
        remedy: `it has ${listed(this.benchmarks({ limit: 10 }))}; \`dirtmap bench trackers\` takes one`,
      });
    }
    return { ...(row as unknown as BenchmarkSummary), machine: parsed(row.machine), result: parsed(row.result) };
  }

  /** Keeps a run. Returns its id. @throws DirtmapError `STORE_FAILED` */
  saveRun({ kind, name, scenario, host, startedAt, result, header, report, reads, conditions }: NewRun): number {
    const values = [kind, name, scenario, host, startedAt, result, json(header), json(report)];
    const columns =
      "kind, name, scenario, host, started_at, result, header, report, reads, total_ms, downtime_ms, conditions";
    return this.#insert(`INSERT INTO run (${columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, [
      ...values,
      gzipSync(json(reads)),
      report.totalMs,
      report.downtimeMs,
      json(conditions),
    ]);
  }

  /** Runs, the newest first. @param before only those with a smaller id @param limit at most 1000 */
  runs({ limit = MAX_ROWS, before }: { limit?: number; before?: number } = {}): RunSummary[] {
    return this.#all<RunSummary>(
      `SELECT ${RUN_SUMMARY} FROM run WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2`,
      [before ?? null, Math.min(limit, MAX_ROWS)],
    );
  }

  /** One run. @throws UsageError `NO_SUCH_RUN` */
  run(id: number): StoredRun {
    const row = this.#get(`SELECT ${RUN_SUMMARY}, header, report, reads, conditions FROM run WHERE id = ?`, id);
    if (row === null) {
      throw new UsageError(`the store has no run ${id}`, {
        code: "NO_SUCH_RUN",
        remedy: `it has ${listed(this.runs({ limit: 10 }))}; \`dirtmap migrate\` makes one`,
      });
    }
    const reads = gunzipSync(row.reads as Uint8Array, { maxOutputLength: MAX_JSON_BYTES }).toString();
    return {
      ...(row as unknown as RunSummary),
      header: parsed(row.header),
      report: parsed(row.report),
      reads: parsed(reads),
      conditions: row.conditions === null ? null : parsed(row.conditions),
    };
  }

  /** Closes the file and lets others have it. */
  [Symbol.dispose](): void {
    try {
      if (this.#db.isOpen) this.#db.close();
    } finally {
      this.#lock[Symbol.dispose]();
    }
  }

  #insert(sql: string, values: Value[]): number {
    return this.#doing("written", "is its disk full?", () => Number(this.#db.run(sql, values).lastInsertRowid));
  }

  #all<Row>(sql: string, values: Value[]): Row[] {
    return this.#doing("read", DAMAGED, () => this.#db.all(sql, values) as unknown as Row[]);
  }

  #get(sql: string, id: number): Record<string, unknown> | null {
    return this.#doing("read", DAMAGED, () => this.#db.get(sql, id));
  }

  #doing<T>(what: string, remedy: string, work: () => T): T {
    try {
      return work();
    } catch (cause) {
      throw new DirtmapError(`the store ${this.path} could not be ${what}: ${(cause as Error).message}`, {
        code: "STORE_FAILED",
        remedy,
        cause,
      });
    }
  }
}

type Value = string | number | null | Uint8Array;

const DAMAGED = "if it is damaged, move it away: a new one is made";

const RUN_SUMMARY = `id, kind, name, scenario, host, started_at AS startedAt, result, total_ms AS totalMs,
  downtime_ms AS downtimeMs`;

function lockedDatabase(path: string, waitMs: number): Disposable {
  let lock: Disposable | null;
  try {
    makeFolder(dirname(path), { mode: 0o700 });
    lock = lockDatabase(path, waitMs);
  } catch (error) {
    throw noStore(path, error);
  }
  if (lock !== null) return lock;
  throw new UsageError(`another process is using the store ${path}`, {
    code: "STORE_BUSY",
    remedy: "try again, or give another --store",
  });
}

/** What a killed process left of the binding's lock: nobody else can have it, since the store's own lock is held. */
function removeAbandonedLock(path: string): void {
  try {
    rmdirSync(`${path}.lock`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}

/** Checks whose file it is and of what version, and takes the steps that are missing, all of them or none. */
function prepare(db: sqlite.Database, path: string): void {
  // Before the first access, or WAL would want memory to share.
  db.exec("PRAGMA locking_mode = EXCLUSIVE");
  const version = pragma(db, "user_version");
  const isNew = version === 0 && db.get("SELECT name FROM sqlite_schema LIMIT 1") === null;
  if (!isNew && pragma(db, "application_id") !== APPLICATION_ID) throw new Error("it is another program's database");
  if (version > STORE_VERSION) {
    throw new UsageError(`the store ${path} is of version ${version}, and this Dirtmap knows up to ${STORE_VERSION}`, {
      code: "STORE_TOO_NEW",
      remedy: "upgrade Dirtmap, or give another --store",
    });
  }
  db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
  if (version === STORE_VERSION) return;
  db.exec("BEGIN IMMEDIATE");
  try {
    for (const step of MIGRATIONS.slice(version)) db.exec(step);
    db.exec(`PRAGMA application_id = ${APPLICATION_ID}; PRAGMA user_version = ${STORE_VERSION}; COMMIT`);
  } catch (error) {
    if (db.inTransaction) db.exec("ROLLBACK");
    throw error;
  }
}

function pragma(db: sqlite.Database, name: "user_version" | "application_id"): number {
  return Number(db.get(`PRAGMA ${name}`)?.[name]);
}

function noStore(path: string, cause: unknown): UsageError {
  // SQLite says "disk I/O error" of a disk that is full.
  return new UsageError(`${path} can't be used as a store: ${(cause as Error).message}`, {
    code: "NO_STORE",
    remedy: "give --store a path with room where there is nothing yet, or a store of Dirtmap's",
    cause,
  });
}

function listed(rows: readonly { readonly id: number }[]): string {
  return rows.length === 0 ? "none yet" : rows.map(({ id }) => id).join(", ");
}

function json(value: object): string {
  return JSON.stringify(value);
}

function parsed(text: unknown): unknown {
  return JSON.parse(String(text));
}
