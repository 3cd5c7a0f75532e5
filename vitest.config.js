import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { defineConfig } from "vitest/config";

// Tests run on built output: workers written in TypeScript do not start under vitest on Node 20.
export default defineConfig({
  test: {
    include: ["dist/src/**/*.test.js", "dist/test/**/*.test.js"],
    exclude: ["dist/test/stress/nightly/**", "dist/test/kernel/**"],
    pool: "forks",
    maxWorkers: 2,
    // Not the home of whoever runs the tests: what is recorded goes here.
    env: { XDG_DATA_HOME: mkdtempSync(join(tmpdir(), "dirtmap-data-")) },
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
