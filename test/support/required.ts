import { test } from "vitest";
import { MissingError } from "../../tools/vm/missing.js";

/** Where something is missing: declares a test that says so, which is skipped, but fails under CI. @param what needs it */
export function requireFound(what: string, found: unknown): void {
  if (!(found instanceof MissingError)) return;
  test.skipIf(!process.env.CI)(`${what}: ${found.message}`, () => {
    throw found;
  });
}
