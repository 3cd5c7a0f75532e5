/**
 * `dirtmap/scenario` reads and checks descriptions of machines and their workloads. Scenarios are YAML, and some come with Dirtmap.
 * {@link loadScenario} reads one by its name or file, and {@link parseScenario} checks a text. A mistake is a `UsageError` that
 * names file, line, column and field. {@link machineSchema} and {@link passthroughSchema} check other descriptions.
 * @module
 */

export { IOMMU_FORMATS, machineSchema, passthroughSchema, platformOf } from "../host/description.js";
export {
  loadScenario,
  type MigrationDefaults,
  parseScenario,
  type Scenario,
  scenarioNames,
} from "./scenario.js";
