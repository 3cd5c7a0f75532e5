import type { MachineDescription } from "../../host/description.js";
import { loadScenario } from "../../scenario/scenario.js";
import type { Policy, TrackingDesign } from "../../tracking/choice.js";
import { refuseWithoutEffect } from "../../tracking/designs.js";
import { type Options, type Said, type Settings, settingsOf } from "./option-scenario-default.js";
import type { MachineOptions } from "./options/machine.js";
import type { PolicyOptions } from "./options/policy.js";
import { checkNamedDevices, policyOf } from "./policy.js";

/** A scenario with the operator's options over it. */
export interface Asked {
  readonly scenario: string;
  readonly description: MachineDescription;
  readonly policy: Policy;
  readonly design: TrackingDesign;
  readonly settings: Settings;
  /** What the scenario itself says of the migration. */
  readonly said: Said;
}

/**
 * Reads the scenario and puts the options over it.
 * @throws UsageError for an unknown or malformed scenario, an unknown device, memory that doesn't fit, measurements that can't
 * be followed, and options that the design does not heed
 */
export function readScenario(options: MachineOptions & PolicyOptions & Options): Asked {
  const { name, machine, migration } = loadScenario(options.scenario);
  const { memory = machine.memory, seed = machine.seed, p2p = machine.p2p } = options;
  checkNamedDevices(
    machine.devices.map(({ id }) => id),
    options,
  );
  const settings = settingsOf(options, migration);
  const { design } = settings;
  refuseWithoutEffect(design, {
    order: options.policy,
    trackers: options.tracker,
    granules: options.granule,
    domain: options.domain,
    untracked: options.untracked?.all,
    untrackedDevices: options.untracked?.devices,
  });
  return {
    scenario: name,
    description: { ...machine, memory, seed, p2p },
    policy: policyOf(options, migration),
    design,
    settings,
    said: migration,
  };
}
