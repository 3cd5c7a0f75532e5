import { safeStrings } from "../../../safe-text.js";
import type { ServerCounters } from "../../../vfio-user/client/counters.js";
import { whatToDo } from "../../../vfio-user/stays.js";
import type { DeviceStatusInput } from "../../commands/device/status.js";
import { printResult } from "../../output.js";
import type { Run } from "../../run-command.js";
import { openControlled } from "../../sites/vfio-user/control.js";
import { deviceStatusText, firstLine } from "../../text/device-text.js";

export const run: Run<DeviceStatusInput> = async ({ socket, json = false }) => {
  await using opened = await openControlled(socket);
  const { id, model, state, failure, migration, log } = opened.counters;
  const advice = adviceOn(opened.counters, socket);
  const status = { socket, id, model, state, failure, migration, log, advice };
  const text = () =>
    deviceStatusText(safeStrings({ ...status, failure: failure === null ? null : firstLine(failure) }));
  printResult(status, { json, text });
};

/** What the operator can do about a device that a migration has left; null: nothing has to be done. */
function adviceOn({ migration, failure, state }: ServerCounters, socket: string): string | null {
  if (migration?.stays != null) return whatToDo(migration.stays, { socket, migration: migration.migration });
  if (migration?.connected === true) return `${migration.movedBy} is migrating it: wait, or end that migration`;
  if (failure === null && state !== "ERROR") return null;
  return whatToDo("error", { socket, migration: null });
}
