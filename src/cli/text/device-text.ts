import type { ServerCounters } from "../../vfio-user/client/counters.js";

/** The state of a served device, and what can be done about it. */
export type DeviceStatus = Pick<ServerCounters, "id" | "model" | "state" | "failure" | "migration" | "log"> & {
  readonly socket: string;
  readonly advice: string | null;
};

/** What `dirtmap device status` prints. */
export function deviceStatusText({ id, model, state, failure, migration, log, socket, advice }: DeviceStatus): string {
  const by =
    migration === null ? "" : `, moved there by ${migration.movedBy}${migration.connected ? "" : ", which has gone"}`;
  const logged = log === null ? "off" : `on, by ${log.granule} bytes, for ${log.startedBy}`;
  return [
    `${id} (${model}) at ${socket}: ${state ?? "can't be migrated"}${by}`,
    ...(failure === null ? [] : [`  it has failed: ${failure}`]),
    `  log: ${logged}`,
    ...(advice === null ? [] : [`  ${advice}`]),
  ].join("\n");
}

/** The message of an error that has its stack. */
export function firstLine(text: string): string {
  return text.split("\n", 1)[0];
}
