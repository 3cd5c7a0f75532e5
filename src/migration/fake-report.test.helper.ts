import type { MigrationReport } from "./report.js";

/** A report of a migration that completed, as whole as a real one; what the test is about is given. */
export function fakeReport(more: Partial<MigrationReport> = {}): MigrationReport {
  return {
    schemaVersion: 1,
    migration: "0123abcd",
    result: "completed",
    verified: true,
    totalMs: 1200,
    downtimeMs: 31,
    bytes: 4096,
    phases: [{ phase: "pre-copy", ms: 10 }],
    rounds: [],
    devices: [],
    design: "split",
    policy: "iommu-first",
    memory: null,
    destination: null,
    predicted: null,
    warnings: [],
    ...more,
  };
}
