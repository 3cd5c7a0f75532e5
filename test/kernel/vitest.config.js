import { defineConfig } from "vitest/config";

// Runs in the guest. One file at a time: what they test is the one kernel, and emulated CPUs are few.
export default defineConfig({
  test: {
    root: new URL("../..", import.meta.url).pathname,
    include: ["dist/test/kernel/**/*.test.js"],
    pool: "forks",
    maxWorkers: 1,
    fileParallelism: false,
    // Node loads what is not a test itself: sent through vite's transformation it would take ten times as long here.
    server: { deps: { external: [/\/dist\/(?!.*\.test\.js$)/] } },
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
