import type { Command } from "commander";
import { runBy } from "../run-command.js";

export interface ScenariosInput {
  readonly json?: boolean;
}

/** `dirtmap scenarios`: what can be given to `--scenario`. */
export function declareScenarios(program: Command): Command {
  const command = program
    .command("scenarios")
    .description("list the scenarios that come with Dirtmap")
    .option("--json", "print the result as JSON")
    .addHelpText("after", "\nExamples:\n  dirtmap scenarios\n  dirtmap scenarios --json | jq -r '.scenarios[].name'");
  return runBy<ScenariosInput>(command, () => import("../run/scenarios.js"));
}
