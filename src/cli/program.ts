import { Command } from "commander";
import type { ServableModel } from "../devices/servable.js";
import { declareAbort } from "./commands/abort.js";
import { declareBenchDesigns } from "./commands/bench/designs.js";
import { declareBenchTrackers } from "./commands/bench/trackers.js";
import { declareBench } from "./commands/bench.js";
import { declareCerts } from "./commands/certs.js";
import { declareDeviceProxy } from "./commands/device/proxy.js";
import { declareDeviceResume } from "./commands/device/resume.js";
import { declareDeviceStatus } from "./commands/device/status.js";
import { declareDevice } from "./commands/device.js";
import { declareList } from "./commands/list.js";
import { declareMigrate } from "./commands/migrate.js";
import { declarePlan } from "./commands/plan.js";
import { declarePredict } from "./commands/predict.js";
import { declareProbe } from "./commands/probe.js";
import { declareReceive } from "./commands/receive.js";
import { declareRecommend } from "./commands/recommend.js";
import { declareRecord } from "./commands/record.js";
import { declareReplay } from "./commands/replay.js";
import { declareResume } from "./commands/resume.js";
import { declareScenarios } from "./commands/scenarios.js";
import { declareServe } from "./commands/serve.js";
import { declareTop } from "./commands/top.js";
import { declareWatch } from "./commands/watch.js";
import { exitCodesHelp } from "./exit-codes.js";
import { addRenamed } from "./input/options/renamed.js";
import { err, out } from "./output.js";

/** Help is Dirtmap's own text; what is wrong with a command line is told by the caller, on one line. */
const OUTPUT = {
  writeOut: (text: string) => out.write(text),
  writeErr: (text: string) => err.write(text),
  outputError: () => {},
};

/** Declares a command below another. */
type Declare = (parent: Command) => Command;

/**
 * The command line. What is wrong with one is thrown as commander's error, and printed by the caller.
 * @param models that can be served: the help of `dirtmap device` lists them
 */
export function commandLine({ version, models }: { version: string; models: readonly ServableModel[] }): Command {
  const program = new Command("dirtmap")
    .description(
      "live-migrate virtual machines with passed-through devices, each tracked by the dirty tracker that suits it",
    )
    .version(version, "-V, --version")
    .addHelpText("after", `\n${exitCodesHelp()}`);
  /** All commands, in the order of the help; each with those below it. */
  const commands: readonly (readonly [Declare, ...Declare[]])[] = [
    [declareMigrate],
    [declareReceive],
    [declarePlan],
    [declareProbe],
    [declarePredict],
    [declareRecord],
    [declareServe],
    [declareBench, declareBenchTrackers, declareBenchDesigns],
    [declareRecommend],
    [declareReplay],
    [declareTop],
    [declareWatch],
    [declareScenarios],
    [declareCerts],
    [declareList],
    [declareResume],
    [declareAbort],
    [(parent) => declareDevice(parent, models), declareDeviceStatus, declareDeviceResume, declareDeviceProxy],
  ];
  for (const [declare, ...below] of commands) {
    const command = declare(program);
    for (const declareBelow of below) declareBelow(command);
  }
  for (const { path, command } of allCommands(program)) {
    addRenamed(command, path);
    command.exitOverride().configureOutput(OUTPUT);
  }
  return program;
}

/** A command, and the words by which it is called after `dirtmap`; none for the program itself. */
export interface NamedCommand {
  readonly path: string;
  readonly command: Command;
  /** It only holds others: `dirtmap`, `dirtmap bench`. */
  readonly isGroup: boolean;
}

/** Lists the program and all commands below it. */
export function allCommands(program: Command, path = ""): NamedCommand[] {
  const isGroup = program.commands.length > 0 && program.registeredArguments.length === 0;
  return [
    { path, command: program, isGroup },
    ...program.commands.flatMap((command) => allCommands(command, `${path} ${command.name()}`.trim())),
  ];
}
