import { explain } from "../../../errors.js";
import type { ReceiveResult } from "../../../migration/destination.js";
import type { tellEvent } from "../../output.js";

/** Tells how a machine was received. @param what it is called: "machine" or "guest" */
export function tellReceived(
  result: ReceiveResult<unknown>,
  tell: ReturnType<typeof tellEvent>,
  what: "machine" | "guest",
): void {
  const { outcome: event, migration } = result;
  if (event === "running") tell({ event, migration }, `migration ${migration}: the ${what} runs here`);
  else {
    const why = explain(result.error);
    const text = event === "run-failed" ? `it does not run: ${why}` : `${event}: ${why}`;
    tell({ event, migration, message: why }, text);
  }
}
