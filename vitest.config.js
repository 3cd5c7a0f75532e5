import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { defineConfig } from "vitest/config";

// Not the home of whoever runs the tests: what is recorded and told live goes here.
const folder = mkdtempSync(join(tmpdir(), "dirtmap-tests-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

// Tests run on built output: workers written in TypeScript do not start under vitest on Node 20.
export default defineConfig({
  test: {
    include: ["dist/{src,test,tools}/**/*.test.js"],
    exclude: ["dist/test/stress/nightly/**", "dist/test/kernel/**"],
    pool: "forks",
    maxWorkers: 2,
    server: {
      deps: {
        // Node loads what is no test itself: sending it through vite's transformation costs more than many a test does.
        external: [/\/dist\/(?!.*\.test\.js$)/],
        // vi.mock reaches only what vite loads: ioctl-interrupted.test.ts exchanges what this file imports.
        inline: [/\/dist\/src\/sys\/ioctl\.js$/],
      },
    },
    env: { XDG_DATA_HOME: folder, XDG_RUNTIME_DIR: folder },
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
