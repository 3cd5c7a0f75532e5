import { DirtmapError } from "../../../errors.js";
import type { ServerCounters } from "../../../vfio-user/client/counters.js";
import type { DeviceResumeInput } from "../../commands/device/resume.js";
import { printResult } from "../../output.js";
import type { Run } from "../../run-command.js";
import { openControlled } from "../../sites/vfio-user/control.js";
import { firstLine } from "../../text/device-text.js";

export const run: Run<DeviceResumeInput> = async ({ socket, json = false, reset = false }) => {
  await using opened = await openControlled(socket);
  const { device, counters } = opened;
  const { id, state } = counters;
  checkResumable(counters, socket, reset);
  if (reset) await device.reset();
  else if (state !== "RUNNING") await device.setState("RUNNING");
  const done = reset
    ? "was reset, and runs"
    : state === "RUNNING"
      ? "was running already"
      : `runs again: it was in ${state}`;
  printResult(
    { socket, id, from: state, state: await device.state(), reset },
    { json, text: (safe) => `${safe.id} ${done}` },
  );
};

function checkResumable({ id, migration, state, failure }: ServerCounters, socket: string, reset: boolean): void {
  const refuse = (message: string, code: string, remedy: string) => new DirtmapError(message, { code, remedy });
  if (migration?.connected === true) {
    throw refuse(
      `${id} is in the middle of a migration: ${migration.movedBy} has moved it to ${state}, and is connected`,
      "DEVICE_BUSY",
      "cancel that migration (Ctrl-C where it runs), or decide it with `dirtmap resume ID`; when its process ends, the server settles it",
    );
  }
  if (reset) return;
  const anew = `\`dirtmap device resume ${socket} --reset\` makes it usable again; its guest's driver has to start it anew`;
  if (migration?.notice === "gone") {
    throw refuse(
      `${id} was handed over by migration ${migration.migration}: it must not go on here`,
      "HANDED_OVER",
      anew,
    );
  }
  if (state === "ERROR" || failure !== null) {
    throw refuse(
      `${id} has failed: ${failure === null ? "it is in ERROR" : firstLine(failure)}`,
      "DEVICE_FAILED",
      anew,
    );
  }
}
