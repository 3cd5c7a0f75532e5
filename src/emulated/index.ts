/**
 * `dirtmap/emulated`: machines whose devices, IOMMUs and vCPUs run in this process, each on a thread of its own, and answer as
 * Linux and the hardware do (docs/fidelity.md).
 *
 * {@link createEmulatedMachine} makes one of a `MachineDescription`; it is an AsyncDisposable, and its threads end with it.
 *
 * @example
 * ```ts
 * import { chooseTrackers, DEFAULT_POLICY, probeMachine } from "dirtmap";
 * import { createEmulatedMachine } from "dirtmap/emulated";
 * import { loadScenario } from "dirtmap/scenario";
 *
 * const { machine: description } = loadScenario("nic-pair");
 * await using machine = await createEmulatedMachine(description);
 * for (const { device, tracker, reason } of chooseTrackers(await probeMachine(machine), DEFAULT_POLICY)) {
 *   console.log(device, tracker, reason);
 * }
 * ```
 * @module
 */

export type { WorkloadDevice } from "../devices/workload.js";
export { EmulatedHost, type EmulatedHostOptions } from "./host.js";
export {
  createEmulatedMachine,
  EmulatedMachine,
  type EmulatedMachineOptions,
  type StampAudit,
} from "./machine.js";
