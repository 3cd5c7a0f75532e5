import { watchMachine } from "../../evidence/machine.js";
import { isServed, type MachineDescription } from "../../host/description.js";
import { SOFTWARE } from "../../migration/software.js";
import type { Endpoint } from "../../migration/transport/endpoint.js";
import type { RunConditions } from "../../observe/conditions.js";
import type { MigrationTuning } from "../../qemu/migration-settings.js";
import type { Policy, TrackingDesign } from "../../tracking/choice.js";

/** What is migrated, and where to. */
export interface Moved {
  /** The name of the host that the machine is on. */
  readonly host: string;
  readonly description: MachineDescription;
  readonly endpoint: Endpoint;
  /** The destination is a second process on this machine. */
  readonly local: boolean;
}

/** How it is asked to be migrated: what `migrate()` takes, with nothing left out. */
export interface AskedFor {
  readonly design: TrackingDesign;
  readonly policy: Policy;
  /** Bytes per second; Infinity: no limit. */
  readonly bandwidth: number;
  readonly channels: number;
  readonly downtimeLimitMs: number;
  readonly maxRounds: number;
  readonly verify: "after" | "before";
  readonly runAfterMs: number;
}

/**
 * The conditions of a QEMU guest's move: what QEMU does has no number of rounds, and nobody compares its memories.
 * @param moved hosts: whose devices the guest has
 */
export function watchGuestConditions(
  { memoryBytes, hosts, transport }: Pick<RunConditions, "memoryBytes" | "hosts" | "transport">,
  { trackers, multifdChannels, bandwidth, downtimeLimitMs }: Required<MigrationTuning> & GuestTrackers,
): () => RunConditions {
  const machineReport = watchMachine();
  return () => ({
    software: SOFTWARE,
    hosts,
    memoryBytes,
    design: "vmm",
    policy: {
      order: "qemu",
      measured: null,
      trackers,
      granules: {},
      domain: null,
      untracked: null,
      untrackedDevices: {},
    },
    transport,
    bandwidth: bandwidth === 0 ? null : bandwidth,
    // Without multifd, QEMU has one stream.
    channels: Math.max(1, multifdChannels),
    downtimeLimitMs,
    maxRounds: null,
    verify: null,
    runAfterMs: 0,
    machine: machineReport(),
  });
}

interface GuestTrackers {
  /** By the devices' names, as they are tracked. */
  readonly trackers: Readonly<Record<string, string>>;
}

/** Begins to watch this machine; the answer has the conditions of what ran from then to the call. */
export function watchConditions({ host, description, endpoint, local }: Moved, asked: AskedFor): () => RunConditions {
  const machineReport = watchMachine();
  const { design, policy, bandwidth, channels, downtimeLimitMs, maxRounds, verify, runAfterMs } = asked;
  const { order, measured, trackers, granules, domain, untracked, untrackedDevices } = policy;
  return () => ({
    software: SOFTWARE,
    hosts: description.devices.some(isServed) ? [host, "vfio-user"] : [host],
    memoryBytes: description.memory,
    design,
    policy: { order, measured: measured?.from ?? null, trackers, granules, domain, untracked, untrackedDevices },
    transport: { scheme: endpoint.scheme, local },
    bandwidth: Number.isFinite(bandwidth) ? bandwidth : null,
    channels,
    downtimeLimitMs,
    maxRounds,
    verify,
    runAfterMs,
    machine: machineReport(),
  });
}
