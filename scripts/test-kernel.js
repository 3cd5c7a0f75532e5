// Boots Linux in QEMU and runs the tests of test/kernel in it, on built output. `--help` is in tools/vm/arguments.ts.
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { main } from "../dist/tools/vm/main.js";

const abort = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => abort.abort());
const root = dirname(dirname(fileURLToPath(import.meta.url)));
process.exitCode = await main(root, process.argv.slice(2), abort.signal);
