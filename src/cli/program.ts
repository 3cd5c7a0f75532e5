import { Command } from "commander";
import type { ServableModel } from "../devices/servable.js";
import { addBench } from "./commands/bench.js";
import { addCerts } from "./commands/certs.js";
import { addAbort, addResume } from "./commands/decide.js";
import { addDevice } from "./commands/device.js";
import { addList } from "./commands/list.js";
import { addMigrate } from "./commands/migrate.js";
import { addPlan } from "./commands/plan.js";
import { addPredict } from "./commands/predict.js";
import { addProbe } from "./commands/probe.js";
import { addReceive } from "./commands/receive.js";
import { addRecommend } from "./commands/recommend.js";
import { addRecord } from "./commands/record.js";
import { addReplay } from "./commands/replay.js";
import { addScenarios } from "./commands/scenarios.js";
import { addServe } from "./commands/serve.js";
import { addTop } from "./commands/top.js";
import { exitCodesHelp } from "./exit-codes.js";
import { err, out } from "./output.js";

/** All commands, each with what it adds to the program. `device` is added apart: its help lists models. */
const COMMANDS = [
  addMigrate,
  addReceive,
  addPlan,
  addProbe,
  addPredict,
  addRecord,
  addServe,
  addBench,
  addRecommend,
  addReplay,
  addTop,
  addScenarios,
  addCerts,
  addList,
  addResume,
  addAbort,
];

/** Help is Dirtmap's own text; what is wrong with a command line is told by the caller, on one line. */
const OUTPUT = {
  writeOut: (text: string) => out.write(text),
  writeErr: (text: string) => err.write(text),
  outputError: () => {},
};

/**
 * The command line. What is wrong with one is thrown as commander's error, and printed by the caller.
 * @param models that can be served: the help of `dirtmap device` lists them
 */
export function commandLine({ version, models }: { version: string; models: readonly ServableModel[] }): Command {
  const program = new Command("dirtmap")
    .description(
      "Live-migrates virtual machines with passed-through devices, each tracked by the dirty tracker that suits it.",
    )
    .version(version, "-V, --version")
    .addHelpText("after", `\n${exitCodesHelp()}`);
  for (const add of COMMANDS) add(program);
  addDevice(program, models);
  for (const command of [program, ...program.commands.flatMap((each) => [each, ...each.commands])]) {
    command.exitOverride().configureOutput(OUTPUT);
  }
  return program;
}
