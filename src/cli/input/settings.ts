import { UsageError } from "../../errors.js";
import { type DeviceDescription, type MachineDescription, platformOf } from "../../host/description.js";
import { MiB } from "../../memory/address.js";
import { layoutRegions } from "../../memory/guest-memory.js";
import { suggest } from "../../nearest.js";
import { formatSize } from "../../observe/format.js";
import { isMeasured } from "../../scenario/choices.js";
import { loadScenario, type MigrationDefaults } from "../../scenario/scenario.js";
import type { Policy } from "../../tracking/choice.js";
import { refuseWithoutEffect } from "../../tracking/designs.js";
import type { LinkOptions, MachineOptions, PolicyOptions } from "./options.js";
import { whoDecides } from "./policy.js";

/** A scenario with the command line's options over it. */
export interface Request {
  readonly scenario: string;
  readonly description: MachineDescription;
  readonly policy: Policy;
  readonly design: MigrationDefaults["design"];
  readonly defaults: MigrationDefaults;
}

/**
 * Reads the scenario and puts the options over it.
 * @throws UsageError for an unknown or malformed scenario, an unknown device, memory that doesn't fit, measurements that can't
 * be followed, and options that the design does not heed
 */
export function readRequest(options: MachineOptions & PolicyOptions & LinkOptions): Request {
  const { name, machine, migration } = loadScenario(options.scenario);
  const description: MachineDescription = {
    ...machine,
    memory: options.memory ?? machine.memory,
    seed: options.seed ?? machine.seed,
    p2p: options.p2p ?? machine.p2p,
  };
  checkDevices(description, options);
  const design = options.design ?? migration.design;
  refuseWithoutEffect(design, {
    order: options.policy,
    trackers: options.tracker,
    granules: options.granule,
    domain: options.domain,
    untracked: options.untracked?.all,
    untrackedDevices: options.untracked?.devices,
  });
  // Measurements that the operator names are meant to be followed, also where the scenario names a tracker.
  const measured = options.policy !== undefined && isMeasured(options.policy);
  const policy: Policy = {
    ...whoDecides(options, migration),
    trackers: { ...(measured ? {} : migration.trackers), ...options.tracker },
    granules: { ...(measured ? {} : migration.granules), ...options.granule },
    domain: options.domain ?? migration.domain,
    // A mode for all devices is meant for those too that the scenario names.
    untracked: options.untracked?.all ?? migration.untracked,
    untrackedDevices: {
      ...(options.untracked?.all === undefined ? migration.untrackedDevices : {}),
      ...options.untracked?.devices,
    },
  };
  return { scenario: name, description, policy, design, defaults: migration };
}

function checkDevices({ devices }: MachineDescription, { tracker, granule, untracked }: PolicyOptions): void {
  const ids = devices.map(({ id }) => id);
  const named = [tracker, granule, untracked?.devices].flatMap((option) => Object.keys(option ?? {}));
  const unknown = named.find((id) => !ids.includes(id));
  if (unknown === undefined) return;
  throw new UsageError(`there is no device '${unknown}'`, { code: "UNKNOWN_DEVICE", remedy: suggest(unknown, ids) });
}

/** What a process of Node takes that serves a device. */
const SERVER_BYTES = 64 * MiB;

/**
 * Checks that a machine's memory can be had, before anything is started: the guest's, its devices', and that of the processes
 * that are started for them.
 * @param where how many machines run here, two where the destination is on this machine too; or that this is the destination
 * @param remedy what would work, for commands without `--memory`
 * @throws UsageError `MEMORY_DOES_NOT_FIT`
 */
export function checkMemory(description: MachineDescription, where: 1 | 2 | "destination", remedy?: string): void {
  const { memory } = description;
  layoutRegions(memory, platformOf(description));
  const copies = where === 2 ? 2 : 1;
  const available = process.availableMemory();
  const besides = description.devices.reduce((sum, device) => sum + bytesBesides(device), 0);
  if ((memory + besides) * copies <= available) return;
  const devices = besides === 0 ? "" : ` and ${formatSize(besides)} for its devices`;
  const here = copies === 2 ? ", and the destination's is needed too" : "";
  const most = Math.floor((available / copies - besides) / MiB);
  throw new UsageError(
    `guest memory of ${formatSize(memory)}${devices} does not fit: ${formatSize(available)} available${here}`,
    {
      code: "MEMORY_DOES_NOT_FIT",
      remedy:
        remedy ??
        (where === "destination"
          ? "migrate to a destination that has more"
          : most < 4
            ? "give it fewer devices, or devices with less memory"
            : `give --memory ${most}M or less`),
    },
  );
}

function bytesBesides(device: DeviceDescription): number {
  // A server that is there already has what it needs.
  if (device.socket !== undefined) return 0;
  const own = device.model === "vgpu" ? device.vram : device.model === "dma-engine" ? device.memory : 0;
  return own + (device.serve === true ? SERVER_BYTES : 0);
}
