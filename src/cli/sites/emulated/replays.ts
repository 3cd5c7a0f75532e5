import { readTrace } from "../../../evidence/trace/file.js";
import { schedulesOf } from "../../../evidence/trace/schedule.js";
import { type MachineDescription, platformOf } from "../../../host/description.js";
import type { ReplaySchedule } from "../../../host/replay-schedule.js";
import { layoutRegions } from "../../../memory/guest-memory.js";

/**
 * Reads the traces that a machine's `replay` devices name, each once.
 * @throws UsageError for a trace that is damaged, doesn't fit the machine, or has no such owner
 */
export async function openReplays(description: MachineDescription): Promise<Map<string, ReplaySchedule>> {
  const replays = description.devices.filter((device) => device.model === "replay");
  const regions = layoutRegions(description.memory, platformOf(description));
  const schedules = new Map<string, ReplaySchedule>();
  for (const file of new Set(replays.map(({ trace }) => trace))) {
    const devices = replays.filter(({ trace }) => trace === file);
    // A file that was named for one of them is one that may be opened.
    const within = devices.every((device) => device.within !== undefined) ? devices[0].within : undefined;
    const owners = devices.map(({ id, owner = id }) => owner);
    const found = schedulesOf(file, await readTrace(file, within), owners, regions);
    devices.forEach(({ id }, index) => {
      const schedule = found.get(owners[index]);
      if (schedule !== undefined) schedules.set(id, schedule);
    });
  }
  return schedules;
}
