import type { Command } from "commander";
import { EXIT_CODES } from "../exit-codes.js";
import { printResult, runCommand } from "../output.js";

/** `dirtmap scenarios`: what can be given to `--scenario`. */
export function addScenarios(program: Command): void {
  program
    .command("scenarios")
    .description("Lists the scenarios that come with Dirtmap")
    .option("--json", "print the result as JSON")
    .addHelpText("after", "\nExamples:\n  dirtmap scenarios\n  dirtmap scenarios --json | jq -r '.scenarios[].name'")
    .action(({ json = false }: { json?: boolean }) =>
      runCommand({ json }, async () => {
        const [{ loadScenario, scenarioNames }, { table }] = await Promise.all([
          import("../scenario.js"),
          import("../../observe/table.js"),
        ]);
        const scenarios = scenarioNames().map((name) => ({ name, summary: loadScenario(name).summary }));
        printResult(
          { scenarios },
          { json, text: (safe) => table(safe.scenarios.map(({ name, summary }) => [name, summary])).join("\n") },
        );
        return EXIT_CODES.done.code;
      }),
    );
}
