import { readFileSync } from "node:fs";
import { CommanderError } from "commander";
import { EXIT_CODES } from "./exit-codes.js";
import { printError, printFailure } from "./output.js";
import { commandLine } from "./program.js";

/*
 * The command line's entry. Commands are declared by light modules; the module that runs one is loaded once it is
 * called. So `--help` and a mistyped option are answered at once.
 */

// What goes wrong outside of a command's own work: in a callback, or before a command is chosen.
process.on("uncaughtException", (error) => {
  printFailure(error, { json: process.argv.includes("--json") });
  process.exit(EXIT_CODES.failed.code);
});

const manifest = new URL("../../../package.json", import.meta.url);
const { version } = JSON.parse(readFileSync(manifest, "utf8")) as { version: string };

// The help of `device` lists the models, which take a while to load.
const models = process.argv.includes("device") ? (await import("../devices/servable-models.js")).SERVABLE_MODELS : [];
const program = commandLine({ version, models });

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
