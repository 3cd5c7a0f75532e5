import { DEFAULTS } from "../../defaults.js";
import { predict } from "../../evidence/predict/predict.js";
import { readTrace } from "../../evidence/trace/file.js";
import type { PredictInput } from "../commands/predict.js";
import { EXIT_CODES } from "../exit-codes.js";
import { settingsOf } from "../input/option-scenario-default.js";
import { readScenario } from "../input/scenario.js";
import { OF_MACHINES, refuseOptions } from "../input/which-go-together.js";
import { checkStore } from "../kept/store.js";
import { printResult } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { openMachine } from "../sites/hosts.js";
import { predictText } from "../text/predict-text.js";
import { estimateLink, predictedConditions, predictMachine } from "./shared/predict-machine.js";

export const run: Run<PredictInput> = async ({ json = false, ...input }, { signal, typed }) => {
  // A store that was asked for and can't be used is refused now, and not once the machine was watched.
  if (input.store !== undefined) checkStore(input);
  const { trace = null } = input;
  if (trace !== null) {
    refuseOptions(
      typed,
      [...OF_MACHINES, "duration", "interval"],
      "--trace has what was observed of a machine already",
    );
  }
  const { prediction, scenario } =
    trace === null ? await ofScenario(input, signal) : await ofTrace(trace, input, signal);
  printResult({ scenario, trace, ...prediction }, { json, text: predictText });
  return prediction.converges ? EXIT_CODES.done.code : EXIT_CODES.notConverging.code;
};

async function ofScenario(input: PredictInput, signal: AbortSignal) {
  const asked = readScenario(input);
  checkMemory(asked.description, 1);
  await using machine = await openMachine(asked.description);
  return { prediction: await predictMachine(machine, asked, input, signal), scenario: asked.scenario };
}

/** A trace says nothing of how its machine is to be migrated. */
async function ofTrace(trace: string, input: PredictInput, signal: AbortSignal) {
  const { header, intervals } = await readTrace(trace);
  const { scenario } = header;
  const settings = settingsOf(input);
  const link = await estimateLink({ ...input, channels: settings.channels, scenario, signal });
  const conditions = predictedConditions(settings, input, DEFAULTS.readMs);
  return { prediction: predict({ ...header, intervals }, link, conditions), scenario };
}
