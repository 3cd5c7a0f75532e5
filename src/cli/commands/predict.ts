import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addMachineOptions, type MachineOptions } from "../input/options/machine.js";
import { addMigrationOptions, type MigrationOptions } from "../input/options/migration.js";
import { addStoreOption, type StoreOption } from "../input/options/places.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options/policy.js";
import { addWatchOptions, type WatchOptions } from "../input/options/watch.js";
import { runBy } from "../run-command.js";

export interface PredictInput extends MachineOptions, PolicyOptions, MigrationOptions, WatchOptions, StoreOption {
  readonly trace?: string;
  readonly linkFrom?: readonly string[];
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap predict
  dirtmap predict --scenario no-tracker --downtime-limit 50ms
  dirtmap predict --bandwidth 1Gbit --duration 5s --json
  dirtmap predict --trace production.dtrc --bandwidth 10Gbit --downtime-limit 300ms
  dirtmap migrate --json > run.json; dirtmap predict --link-from run.json

Trackers are switched on, read at an interval, and switched off again; nothing is moved. The speed of the link is measured
on loopback, and the time to stop and start the machine is taken from the last migrations in the store. With --link-from,
both are taken from earlier migrations over the same link. --bandwidth limits the speed.

The exit code says whether the migration converges (0) or not (4), so that \`dirtmap predict && dirtmap migrate\` starts no
migration that does not converge.
`;

/** `dirtmap predict`: what a migration would be. */
export function declarePredict(program: Command): Command {
  const command = program
    .command("predict")
    .description("tell whether a migration converges, in how many rounds, with what downtime, and what is in its way");
  addMigrationOptions(
    addWatchOptions(addStoreOption(addPolicyOptions(addMachineOptions(command)), { optional: true }), {
      durationMs: DEFAULTS.observeMs,
      intervalMs: DEFAULTS.observeIntervalMs,
    }),
  )
    .option("--trace <file>", "predict from what `dirtmap record` wrote, instead of from a scenario")
    .option("--link-from <file...>", "take the link from reports of earlier migrations over it (`migrate --json`)")
    .option("--json", "print the result as JSON")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<PredictInput>(command, () => import("../run/predict.js"));
}
