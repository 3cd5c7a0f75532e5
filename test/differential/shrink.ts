import { leaveOut } from "../support/shrink.js";
import type { Operation } from "./operation.js";
import { type Difference, type MakeSides, runOperations } from "./sequence.js";

/** Runs that shrinking may take, and those that it may take to shorten the operations themselves. */
const MAX_RUNS = 400;
const MAX_LAST_RUNS = 100;

/** The shortest run that was found in which the hosts still differ. Which difference it is may change on the way. */
export async function shrink(make: MakeSides, found: Difference): Promise<Difference> {
  let best = found;
  const operations = () => best.steps.map(({ operation }) => operation);
  const attempt = async (given: readonly Operation[]): Promise<readonly Operation[] | null> => {
    const difference = await runOperations(make, best.kind, given);
    if (difference === null) return null;
    best = difference;
    return operations();
  };
  await leaveOut(operations(), attempt, MAX_RUNS);
  let runs = 0;
  for (let index = 0; index < best.steps.length; index++) {
    for (const page of (operations()[index] as { pages?: readonly number[] })?.pages ?? []) {
      const all = operations();
      const operation = all[index];
      if (operation.kind !== "mark" || operation.pages.length < 2 || ++runs > MAX_LAST_RUNS) break;
      if ((await attempt(all.with(index, { ...operation, pages: [page] }))) !== null) break;
    }
  }
  return best;
}
