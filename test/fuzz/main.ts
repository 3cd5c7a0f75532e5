import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { SERVABLE_MODELS } from "../../src/devices/servable-models.js";
import { FuzzFailure, type FuzzResult, fuzz, replay } from "./fuzz.js";
import { fuzzGuest, GuestFuzzFailure, replayGuest } from "./guest/fuzz.js";
import type { GuestOperation } from "./guest/operation.js";
import { GUEST_MODELS } from "./guest/side.js";
import { operationsFromText } from "./operation.js";

const USAGE = `npm run test:fuzz -- [options]: sends vfio-user servers right, almost right and wrong messages, and uses devices as
guests should and should not

  --messages N   messages per model (default: 1000000)
  --operations N what a guest does, per model (default: 1000000)
  --model NAME   one of ${GUEST_MODELS.join(", ")} (default: all, one after the other); replay has no server
  --dma MODE     auto, messages or both (default: both, half of the messages each)
  --seed N       of the first run (default: by the clock); each run has the next one
  --replay FILE  does the operations of a failure once more, a line each; needs --model, and --dma if it was messages
  --guest        the failure was of a guest`;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      messages: { type: "string", default: "1000000" },
      operations: { type: "string", default: "1000000" },
      guest: { type: "boolean", default: false },
      model: { type: "string" },
      dma: { type: "string", default: "both" },
      seed: { type: "string" },
      replay: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  const messages = Number(values.messages);
  const seed = values.seed === undefined ? Date.now() >>> 0 : Number(values.seed);
  const operations = Number(values.operations);
  const named = (names: readonly string[]) => names.filter((name) => name === (values.model ?? name));
  const guests = named(GUEST_MODELS);
  const models = named(SERVABLE_MODELS.map(({ name }) => name));
  const modes = (["auto", "messages"] as const).filter((mode) => values.dma === "both" || values.dma === mode);
  const counts = messages >= 0 && operations >= 0;
  if (values.help || !counts || !Number.isInteger(seed) || guests.length === 0 || modes.length === 0) {
    process.stderr.write(`${USAGE}\n`);
    return values.help ? 0 : 2;
  }
  if (values.replay !== undefined) {
    const text = readFileSync(values.replay, "utf8");
    const what = values.guest
      ? await replayGuest(guests[0], operationsFromText<GuestOperation>(text))
      : await replay(models[0], modes[0], operationsFromText(text));
    process.stdout.write(`${what ?? "nothing went wrong"}\n`);
    return what === undefined ? 0 : 1;
  }
  process.stdout.write(`seed ${seed}\n`);
  for (const model of operations > 0 ? guests : []) {
    const { tally, grown } = await fuzzGuest({ model, operations, seed, onProgress: progressOf(model, operations) });
    const counted = [...tally].map(([what, times]) => `${what} ${times}`);
    process.stdout.write(
      `guest of ${model}: ${operations} operations, grown by ${mib(grown)}\n  ${counted.join(", ")}\n`,
    );
  }
  for (const model of messages > 0 ? models : []) {
    for (const dma of modes) {
      const result = await fuzz({
        model,
        dma,
        messages: Math.ceil(messages / modes.length),
        seed,
        onFinding: (what) => process.stderr.write(`${model} ${dma}: ${what}; shrinking\n`),
        onProgress: (done, { rssBytes }) =>
          process.stderr.write(`${model} ${dma}: ${done} messages, ${mib(rssBytes)}\n`),
      });
      process.stdout.write(`${summary(model, dma, result)}\n`);
    }
  }
  return 0;
}

/** Tells of each tenth. */
function progressOf(model: string, operations: number): (done: number) => void {
  let told = 0;
  return (done) => {
    if (done - told < operations / 10) return;
    told = done;
    process.stderr.write(`guest of ${model}: ${done} operations\n`);
  };
}

function mib(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function summary(model: string, dma: string, { messages, seconds, before, after, tally }: FuzzResult): string {
  const errnos = new Map<string, number>();
  for (const [what, times] of tally) {
    const errno = what.startsWith("server's") ? what : (what.split(" ").at(-1) ?? what);
    errnos.set(errno, (errnos.get(errno) ?? 0) + times);
  }
  const counted = [...errnos].sort((a, b) => b[1] - a[1]).map(([errno, times]) => `${errno} ${times}`);
  return [
    `${model}, --dma ${dma}: ${messages} messages in ${seconds.toFixed(1)} s, ${Math.round(messages / seconds)}/s`,
    `  RSS ${mib(before.rssBytes)} -> ${mib(after.rssBytes)}, descriptors ${before.descriptors} -> ${after.descriptors}, mappings ${before.mappings} -> ${after.mappings}`,
    `  ${counted.join(", ")}`,
  ].join("\n");
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(
    `${error instanceof FuzzFailure || error instanceof GuestFuzzFailure ? error.message : (error as Error).stack}\n`,
  );
  process.exitCode = 1;
}
