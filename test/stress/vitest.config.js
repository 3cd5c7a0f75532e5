import { defineConfig } from "vitest/config";

// The long stress: 10^8 writes unless DIRTMAP_STRESS_WRITES says otherwise. Drivers that run by seeds take DIRTMAP_SEEDS.
export default defineConfig({
  test: {
    root: new URL("../..", import.meta.url).pathname,
    include: ["dist/test/stress/**/*.test.js"],
    env: {
      DIRTMAP_STRESS_WRITES: process.env.DIRTMAP_STRESS_WRITES ?? "100000000",
      DIRTMAP_STRESS_SEEDS: process.env.DIRTMAP_STRESS_SEEDS ?? "5",
    },
    pool: "forks",
    maxWorkers: 1,
    testTimeout: 4 * 60 * 60 * 1000,
  },
});
