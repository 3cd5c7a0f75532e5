/**
 * `dirtmap/scenario`: machines and their workloads as YAML; some come with Dirtmap. {@link loadScenario} reads one by its name
 * or file, {@link parseScenario} checks a text; what is wrong is a `UsageError` that names file, line, column and field.
 * @module
 */

export {
  loadScenario,
  type MigrationDefaults,
  parseScenario,
  type Scenario,
  scenarioNames,
} from "./scenario.js";
