import { zeroShare } from "../../../evidence/predict/zero-share.js";
import type { TraceHeader } from "../../../evidence/trace/format.js";
import type { TraceInterval } from "../../../evidence/trace/interval.js";
import { deviceStateBytes, intervalOf, ownersOf, platformOfMemory } from "../../../evidence/trace/observed.js";
import type { Machine } from "../../../host/host.js";
import { watch } from "../../../observe/watch.js";
import type { Policy, TrackingDesign } from "../../../tracking/choice.js";
import { openDesign } from "../../../tracking/designs.js";
import { chooseTrackers } from "../../../tracking/policy.js";
import { probeMachine } from "../../../tracking/probe.js";

/** What is to be watched, and how long. */
export interface ObserveOptions {
  readonly machine: Machine;
  readonly policy: Policy;
  readonly design: TrackingDesign;
  readonly intervalMs: number;
  /** The number of intervals follows from it. */
  readonly durationMs: number;
  readonly signal: AbortSignal;
  /** How the machine is called in what is kept. */
  readonly host: string;
  readonly scenario: string | null;
  /** Told what the trace's header says once it is known, and then each interval. */
  readonly onHeader?: (header: TraceHeader) => Promise<void>;
  readonly onInterval?: (interval: TraceInterval) => Promise<void>;
}

/**
 * Switches the chosen trackers of a running machine on, reads them at an interval, and switches them off again. Ends early
 * with the signal.
 * @returns what is known of the machine, and the mean time of a read; null where nothing was read
 * @throws UsageError, UapiError of the trackers
 */
export async function observeMachine(options: ObserveOptions): Promise<{ header: TraceHeader; readMs: number } | null> {
  const { machine, policy, design, intervalMs, durationMs, signal, host, scenario } = options;
  const choices = chooseTrackers(await probeMachine(machine), policy);
  const start = {
    memoryBytes: machine.memory.bytes,
    platform: platformOfMemory(machine.memory),
    intervalMs,
    startedAt: new Date().toISOString(),
    host,
    scenario,
    zeroShare: zeroShare(machine.memory),
    deviceStateBytes: await deviceStateBytes(machine),
  };
  let header: TraceHeader | undefined;
  let reads = 0;
  let readMs = 0;
  await using source = await openDesign(design, machine, choices, { signal });
  await watch({
    source,
    intervalMs,
    signal,
    reads: Math.max(1, Math.round(durationMs / intervalMs)),
    onRead: async (read, elapsedMs) => {
      if (header === undefined) {
        header = { ...start, owners: ownersOf(machine, source, read), unread: [...read.unread] };
        await options.onHeader?.(header);
      }
      reads++;
      readMs += read.ms;
      await options.onInterval?.(intervalOf(read, elapsedMs));
    },
  });
  return header === undefined ? null : { header, readMs: readMs / reads };
}
