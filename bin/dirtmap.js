#!/usr/bin/env node
// What there is before anything is built: says in one line what is missing, and what brings it.
import { existsSync } from "node:fs";

const program = new URL("../dist/src/cli/main.js", import.meta.url);
const packages = new URL("../node_modules", import.meta.url);

function fail(missing, remedy) {
  console.error(`dirtmap: ${missing}; run: ${remedy}`);
  process.exitCode = 1;
}

if (!existsSync(program)) {
  fail("it is not built", existsSync(packages) ? "npm run build" : "npm ci && npm run build");
} else {
  try {
    await import(program.href);
  } catch (error) {
    if (error?.code !== "ERR_MODULE_NOT_FOUND") throw error;
    fail(`a part is missing: ${error.message.split("\n")[0]}`, "npm ci && npm run build");
  }
}
