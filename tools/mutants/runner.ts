import { createVitest } from "vitest/node";

/*
 * Runs tests again and again, each time that its parent asks. Vitest is started once, since that takes longer than most of
 * the tests that notice a mutant; each test file still has a process of its own.
 */

/** Sent by the parent; answered with whether all tests passed. */
export interface TestRequest {
  /** Parts of paths of test files. */
  readonly filters: readonly string[];
  /** The paths of files that aren't as they were at the last request. */
  readonly changed: readonly string[];
}

const vitest = await createVitest("test", { watch: false, bail: 1, reporters: [{}] });

async function passes({ filters, changed }: TestRequest): Promise<boolean> {
  for (const path of changed) vitest.invalidateFile(path);
  // A failure of the run before would end this one.
  vitest.state.filesMap.clear();
  vitest.state.idMap.clear();
  const specifications = await vitest.globTestSpecifications([...filters]);
  const { testModules, unhandledErrors } = await vitest.runTestSpecifications(specifications);
  return (
    specifications.length > 0 &&
    testModules.length === specifications.length &&
    testModules.every((module) => module.state() === "passed" || module.state() === "skipped") &&
    unhandledErrors.length === 0
  );
}

process.on("message", async (request: TestRequest) => {
  process.send?.(await passes(request));
});
process.on("disconnect", () => process.exit());
