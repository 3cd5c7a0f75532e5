/**
 * `dirtmap/scenario`: machines and their workloads, described. Scenarios are YAML, and some come with Dirtmap:
 * {@link loadScenario} reads one by its name or file, {@link parseScenario} checks a text; what is wrong is a `UsageError` that
 * names file, line, column and field. {@link machineSchema} and {@link passthroughSchema} check descriptions made otherwise.
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
