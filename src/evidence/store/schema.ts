/*
 * The store's tables, step by step: `PRAGMA user_version` says how many of these steps a file has seen. A step that was
 * released is never changed; what is to be different is another step.
 */

/**
 * Each step's SQL. Times are ISO 8601 in UTC; JSON is text, so that SQLite's own functions reach into it, except for the
 * reads of a run, which are many numbers: JSON behind gzip.
 */
export const MIGRATIONS: readonly string[] = [
  `CREATE TABLE benchmark (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    host TEXT NOT NULL,
    scenario TEXT NOT NULL,
    machine TEXT NOT NULL,
    taken_at TEXT NOT NULL,
    result TEXT NOT NULL
  ) STRICT;
  CREATE INDEX benchmark_kind ON benchmark (kind, id);
  CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    scenario TEXT NOT NULL,
    host TEXT NOT NULL,
    started_at TEXT NOT NULL,
    result TEXT NOT NULL,
    header TEXT NOT NULL,
    report TEXT NOT NULL,
    reads BLOB NOT NULL
  ) STRICT;`,
  // A list of runs shows these without reading the reports.
  `ALTER TABLE run ADD COLUMN total_ms REAL;
  ALTER TABLE run ADD COLUMN downtime_ms REAL;
  UPDATE run SET total_ms = json_extract(report, '$.totalMs'), downtime_ms = json_extract(report, '$.downtimeMs');
  CREATE INDEX run_started ON run (started_at);`,
  // Bandwidth, policy, machine …; NULL: the run is older than this.
  "ALTER TABLE run ADD COLUMN conditions TEXT;",
];

/** The version of a file that has seen all steps. */
export const STORE_VERSION = MIGRATIONS.length;
