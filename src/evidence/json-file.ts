import { explain, UsageError } from "../errors.js";
import { safeJson } from "../safe-text.js";
import { readTextInput } from "../sys/input-file.js";
import { writeOutput } from "../sys/output-file.js";

/*
 * Files of what was measured: JSON, which whoever reads it checks field by field.
 */

/** 256 devices with all that can be measured of them take some megabytes. */
const MAX_FILE_BYTES = 64 * 2 ** 20;

/** Reads one, unchecked. @throws UsageError `NO_BENCHMARK` where it can't be read, `BAD_BENCHMARK` where it is no JSON */
export function readJson(path: string): unknown {
  let content: string;
  try {
    content = readTextInput(path, MAX_FILE_BYTES);
  } catch (cause) {
    throw new UsageError(`can't read the benchmark ${path}: ${explain(cause)}`, {
      code: "NO_BENCHMARK",
      remedy: "take one: dirtmap bench trackers --output FILE",
      cause,
    });
  }
  try {
    return JSON.parse(content);
  } catch (cause) {
    const problem = content.trim() === "" ? "it is empty" : "it is no JSON, or cut short";
    throw new UsageError(`${path} is no benchmark of trackers, or damaged: ${problem}`, {
      code: "BAD_BENCHMARK",
      remedy: "take it again: dirtmap bench trackers --output FILE",
      cause,
    });
  }
}

/** Writes one. @throws UsageError `CANNOT_WRITE` */
export function writeJson(path: string, value: object): void {
  writeOutput(path, `${safeJson(value)}\n`);
}
