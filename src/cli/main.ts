import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
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
import { EXIT_CODES, exitCodesHelp } from "./exit-codes.js";
import { printError } from "./output.js";

/*
 * The command line's entry. Commands declare their options here and load what they need once they run, so that
 * `--help` and a mistyped option are answered at once.
 */

const manifest = new URL("../../../package.json", import.meta.url);
const { version } = JSON.parse(readFileSync(manifest, "utf8")) as { version: string };

const program = new Command("dirtmap")
  .description(
    "Live-migrates virtual machines with passed-through devices, each tracked by the dirty tracker that suits it.",
  )
  .version(version, "-V, --version")
  .exitOverride()
  .configureOutput({ outputError: () => {} })
  .addHelpText("after", `\n${exitCodesHelp()}`);
for (const add of [
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
]) {
  add(program);
}
// Its help lists the models, which take a while to load.
const models = process.argv[2] === "device" ? (await import("../devices/servable-models.js")).SERVABLE_MODELS : [];
addDevice(program, models);
for (const command of program.commands.flatMap((each) => [each, ...each.commands])) {
  command.exitOverride().configureOutput({ outputError: () => {} });
}

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Help and version were printed. A bare `dirtmap` prints the help too, and is a usage error.
  if (error.exitCode === 0) process.exitCode = EXIT_CODES.done.code;
  else {
    process.exitCode = EXIT_CODES.usage.code;
    if (error.code !== "commander.help") {
      printError({ code: "BAD_OPTION", ...inOneLine(error) }, { json: process.argv.includes("--json") });
    }
  }
}

/** Commander's words for what is wrong, on one line; a parser's own words already say what would work. */
function inOneLine(error: CommanderError): { message: string; remedy?: string } {
  const message = error.message.replace(/^error: /, "").replaceAll("\n", " ");
  const [, option, why] =
    /^(?:option|command-argument value) '(.*?)' argument '.*?' is invalid\. (.*)$/.exec(message) ?? [];
  if (option !== undefined) return { message: `${option}: ${why.replace(/\.$/, "")}` };
  return { message: message.replace(/\.$/, ""), remedy: "see --help" };
}
