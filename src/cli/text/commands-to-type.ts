import type { TrackerBenchmark } from "../../evidence/trackers/result.js";
import { scenarioNames } from "../../scenario/scenario.js";
import { shellWord } from "../../shell-word.js";

/** The command that takes a benchmark of the same machine. */
export function benchCommand({ host, scenario }: Pick<TrackerBenchmark, "host" | "scenario">): string {
  return `dirtmap bench trackers ${machineArguments({ host, scenario })}`;
}

/** The command that follows a recommendation: of a scenario's machine it migrates, of others it plans. */
export function followCommand(file: string, { host, scenario }: Pick<TrackerBenchmark, "host" | "scenario">): string {
  const command = scenario === null ? "plan" : "migrate";
  return `dirtmap ${command} ${machineArguments({ host, scenario })} --policy ${shellWord(`measured:${file}`)}`;
}

function machineArguments({ host, scenario }: Pick<TrackerBenchmark, "host" | "scenario">): string {
  // Of a scenario's own file a benchmark has only the name.
  if (scenario !== null) return `--scenario ${scenarioNames().includes(scenario) ? scenario : "FILE"}`;
  // Which sockets they were is in no benchmark.
  return host === "vfio-user" ? "--host vfio-user:PATH" : `--host ${host}`;
}
