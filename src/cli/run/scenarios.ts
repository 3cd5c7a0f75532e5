import { table } from "../../observe/table.js";
import { loadScenario, scenarioNames } from "../../scenario/scenario.js";
import type { ScenariosInput } from "../commands/scenarios.js";
import { printResult } from "../output.js";
import type { Run } from "../run-command.js";

export const run: Run<ScenariosInput> = async ({ json = false }) => {
  const scenarios = scenarioNames().map((name) => ({ name, summary: loadScenario(name).summary }));
  printResult(
    { scenarios },
    { json, text: (safe) => table(safe.scenarios.map(({ name, summary }) => [name, summary])).join("\n") },
  );
};
