import { existsSync } from "node:fs";
import type { Command } from "commander";
import { DirtmapError, UsageError } from "../../../errors.js";
import { safeStrings } from "../../../safe-text.js";
import { isErrno } from "../../../uapi/errno.js";
import type { ServerCounters } from "../../../vfio-user/client/counters.js";
import type { VfioUserDevice } from "../../../vfio-user/client/device.js";
import { EXIT_CODES } from "../../exit-codes.js";
import { printResult, runCommand } from "../../output.js";

/** `--json` may be the parent's, which has it, too. */
interface ControlOptions {
  readonly json?: boolean;
  readonly reset?: boolean;
}

/** `dirtmap device status`: what a served device does, and who has moved it. */
export function addDeviceStatus(device: Command): void {
  device
    .command("status")
    .description("tell what state a served device is in, who has moved it there, and what can be done about it")
    .argument("<socket>", "the path of the device's socket")
    .option("--json", "print the result as JSON")
    .addHelpText("after", "\nExamples:\n  dirtmap device status ./mlx5\n  dirtmap device status ./mlx5 --json")
    .action((socket: string, _: ControlOptions, command: Command) => {
      const { json = false } = command.optsWithGlobals<ControlOptions>();
      return runCommand({ json }, async () => {
        await using opened = await open(socket);
        const { id, model, state, failure, migration, log } = opened.counters;
        const advice = await adviceOn(opened.counters, socket);
        const status = { socket, id, model, state, failure, migration, log, advice };
        const text = () =>
          statusText(safeStrings({ ...status, failure: failure === null ? null : firstLine(failure) }));
        printResult(status, { json, text });
        return EXIT_CODES.done.code;
      });
    });
}

/** `dirtmap device resume`: the operator lets a device run that a migration has left stopped. */
export function addDeviceResume(device: Command): void {
  device
    .command("resume")
    .description("let a served device run again that a migration has left stopped")
    .argument("<socket>", "the path of the device's socket")
    .option("--reset", "put it into the state after power-on first: its guest's driver has to start it anew")
    .option("--json", "print the result as JSON")
    .addHelpText(
      "after",
      `
Only when it is certain that the machine does not run at the migration's other side, and never will. A device whose
migration is still connected is refused: end that first.

Examples:
  dirtmap device resume ./mlx5
  dirtmap device resume ./mlx5 --reset --json`,
    )
    .action((socket: string, _: ControlOptions, command: Command) => {
      const { json = false, reset = false } = command.optsWithGlobals<ControlOptions>();
      return runCommand({ json }, async () => {
        await using opened = await open(socket);
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
        return EXIT_CODES.done.code;
      });
    });
}

/** A device over its control socket, and what its server tells. */
interface Opened extends AsyncDisposable {
  readonly device: VfioUserDevice;
  readonly counters: ServerCounters;
}

/** @throws UsageError `NOT_DIRTMAPS` for another server; UapiError where nobody listens */
async function open(socket: string): Promise<Opened> {
  const { VfioUserHost } = await import("../../../vfio-user/client/host.js");
  const host = new VfioUserHost([{ path: socket, id: "device" }]);
  const [{ id }] = await host.devices();
  const foreign = () =>
    new UsageError(`the server at ${socket} is not Dirtmap's`, {
      code: "NOT_DIRTMAPS",
      remedy: "ask that server's own tools",
    });
  const device = await host.openControl(id).catch((error: unknown) => {
    // Another's server has no control socket beside its own.
    throw isErrno(error, "ENOENT") && existsSync(socket) ? foreign() : error;
  });
  const counters = await device.serverCounters();
  if (counters === null) {
    await host[Symbol.asyncDispose]();
    throw foreign();
  }
  return {
    device,
    counters,
    [Symbol.asyncDispose]: () => host[Symbol.asyncDispose](),
  };
}

/** What the operator can do about a device that a migration has left; null: nothing has to be done. */
async function adviceOn({ migration, failure, state }: ServerCounters, socket: string): Promise<string | null> {
  const { whatToDo } = await import("../../../vfio-user/stays.js");
  if (migration?.stays != null) return whatToDo(migration.stays, { socket, migration: migration.migration });
  if (migration?.connected === true) return `${migration.movedBy} is migrating it: wait, or end that migration`;
  if (failure === null && state !== "ERROR") return null;
  return whatToDo("error", { socket, migration: null });
}

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

type Status = Pick<ServerCounters, "id" | "model" | "state" | "failure" | "migration" | "log"> & {
  readonly socket: string;
  readonly advice: string | null;
};

function statusText({ id, model, state, failure, migration, log, socket, advice }: Status): string {
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

/** Of an error with its stack. */
function firstLine(text: string): string {
  return text.split("\n", 1)[0];
}
