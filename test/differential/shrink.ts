import type { Operation } from "./operation.js";
import { type Difference, type MakeSides, runOperations } from "./sequence.js";

/** Runs that shrinking may take. */
const MAX_RUNS = 400;

/**
 * Leaves out what a difference doesn't need (delta debugging, Zeller and Hildebrandt 2002): chunks of operations, ever
 * smaller, as long as the hosts still differ. Which difference it is may change on the way.
 */
export async function shrink(make: MakeSides, found: Difference): Promise<Difference> {
  let best = found;
  let runs = 0;
  const attempt = async (operations: readonly Operation[]): Promise<boolean> => {
    if (++runs > MAX_RUNS) return false;
    const difference = await runOperations(make, best.kind, operations);
    if (difference === null) return false;
    best = difference;
    return true;
  };
  const operations = () => best.steps.map(({ operation }) => operation);
  for (let chunk = Math.ceil(best.steps.length / 2); runs < MAX_RUNS; chunk = Math.max(1, Math.floor(chunk / 2))) {
    let shorter = false;
    for (let from = Math.max(0, best.steps.length - 1 - chunk); from >= 0; from -= chunk) {
      const all = operations();
      if (await attempt([...all.slice(0, from), ...all.slice(from + chunk)])) shorter = true;
    }
    if (chunk === 1 && !shorter) break;
  }
  for (let index = 0; index < best.steps.length && runs < MAX_RUNS; index++) {
    for (const page of (operations()[index] as { pages?: readonly number[] })?.pages ?? []) {
      const all = operations();
      const operation = all[index];
      if (operation.kind !== "mark" || operation.pages.length < 2) break;
      if (await attempt(all.with(index, { ...operation, pages: [page] }))) break;
    }
  }
  return best;
}
