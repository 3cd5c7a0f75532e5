import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import { quickTests } from "./dist/tools/quick-tests.js";
import all from "./vitest.config.js";

// For who edits: the tests that need no machine. Which these are is decided in tools/quick-tests.ts.
export default defineConfig({
  ...all,
  test: {
    ...all.test,
    include: quickTests(fileURLToPath(new URL(".", import.meta.url))),
    // Files share a process, which halves the time; `npm test` gives each its own.
    isolate: false,
  },
});
