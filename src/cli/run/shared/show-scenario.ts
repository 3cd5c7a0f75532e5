import type { EmulatedMachine } from "../../../emulated/machine.js";
import { PAGE_SIZE } from "../../../memory/address.js";
import { type MigrationEvent, migrationEvents } from "../../../migration/events.js";
import { publishFeed } from "../../../observe/feed/publish.js";
import { watch } from "../../../observe/watch.js";
import { openDesign } from "../../../tracking/designs.js";
import { chooseTrackers } from "../../../tracking/policy.js";
import { probeMachine } from "../../../tracking/probe.js";
import type { MachineOptions } from "../../input/options/machine.js";
import type { PolicyOptions } from "../../input/options/policy.js";
import type { ViewOptions } from "../../input/options/watch.js";
import { readScenario } from "../../input/scenario.js";
import { watchHeader } from "../../kept/record-run.js";
import { checkMemory } from "../../sites/emulated/check-memory.js";
import { openMachine } from "../../sites/hosts.js";
import { endOf, grown, openView } from "./view.js";

/** Which machine is shown, and how. */
export type ShowInput = MachineOptions & PolicyOptions & ViewOptions;

/**
 * Starts a scenario's machine and reads its trackers.
 * @param tooLarge what would work if its memory can't be had, for commands without `--memory`
 */
export async function showScenario(input: ShowInput, signal: AbortSignal, tooLarge?: string): Promise<void> {
  const { scenario, description, policy, design } = readScenario(input);
  checkMemory(description, 1, tooLarge);
  await using machine = await openMachine(description);
  const choices = chooseTrackers(await probeMachine(machine), policy);
  await using source = await openDesign(design, machine, choices, { signal });
  const header = watchHeader({ scenario, startedAt: new Date() }, description, choices);
  // Without one, nobody else sees it; it is shown here all the same.
  await using _feed = await publishFeed(header).catch(() => undefined);
  using view = openView({ ...header, title: scenario }, input);
  let latest: MigrationEvent | undefined;
  const listener = (event: unknown) => {
    latest = event as MigrationEvent;
  };
  let before = await writtenBytes(machine);
  migrationEvents.subscribe(listener);
  try {
    await watch({
      source,
      intervalMs: input.interval,
      signal: endOf(input, signal),
      ...(input.once === true ? { reads: 1 } : {}),
      onRead: async (_read, elapsedMs) => {
        if (latest?.type !== "read") return;
        const now = await writtenBytes(machine);
        view.show({ type: "written", atMs: latest.atMs, elapsedMs, bytes: grown(before, now) });
        before = now;
        view.show(latest);
      },
    });
  } finally {
    migrationEvents.unsubscribe(listener);
  }
  view.finish();
}

/** Bytes that each device and vCPU has written so far, by its own count. */
async function writtenBytes(machine: EmulatedMachine): Promise<Map<string, number>> {
  const written = new Map<string, number>();
  // A unit of a vCPU's is a page.
  for (const { writer, lastSequence } of await machine.vcpus.trails()) written.set(writer, lastSequence * PAGE_SIZE);
  for (const { id, vfio } of machine.devices) {
    const { bytes } = await vfio.counters();
    if (bytes !== undefined) written.set(id, bytes);
  }
  return written;
}
