import { resolve } from "node:path";
import { traceScenario } from "../../scenario/trace.js";
import type { ReplayInput } from "../commands/replay.js";
import type { Run } from "../run-command.js";
import { showScenario } from "./shared/show-scenario.js";

export const run: Run<ReplayInput> = async ({ trace, ...input }, { signal, interrupts }) => {
  interrupts.tellFirst(() => {});
  interrupts.endWithReader();
  const scenario = resolve(trace);
  // Another file would be taken for a scenario.
  traceScenario(scenario);
  const tooLarge = "replay it on a machine with more memory, or predict from it (dirtmap predict --trace FILE)";
  await showScenario({ ...input, scenario }, signal, tooLarge);
};
