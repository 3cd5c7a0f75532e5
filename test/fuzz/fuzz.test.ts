import { describe, expect, it } from "vitest";
import { SERVABLE_MODELS } from "../../src/devices/servable-models.js";
import type { DeviceFacts } from "./facts.js";
import { FuzzFailure, fuzz, replay } from "./fuzz.js";
import { operationsFromText, operationsToText } from "./operation.js";

/*
 * A moment of what `npm run test:fuzz` does for hours. The seeds are the same every time: what this finds, it finds again.
 */

const MESSAGES = 1500;

describe.runIf(process.platform === "linux")("a served device", () => {
  it.each(SERVABLE_MODELS.map(({ name }, index) => [name, (["auto", "messages"] as const)[index % 2]] as const))(
    "answers whatever it is sent as it must: %s, --dma %s",
    async (model, dma) => {
      const { messages, tally } = await fuzz({ model, dma, messages: MESSAGES, seed: 1 });
      expect(messages).toBeGreaterThanOrEqual(MESSAGES);
      expect([...tally.keys()]).toContain("DMA_MAP none");
      expect([...tally.keys()]).toContain("DMA_MAP EEXIST");
    },
  );
});

describe.runIf(process.platform === "linux")("the fuzzer finds", () => {
  const mistakes: [string, (facts: DeviceFacts) => DeviceFacts][] = [
    [
      "a region whose last byte can't be reached",
      (facts) => ({ ...facts, regions: facts.regions.map((r) => ({ ...r, bytes: r.bytes > 0 ? r.bytes + 1 : 0 })) }),
    ],
    [
      "a log that takes too many ranges",
      (facts) => ({ ...facts, dmaLogging: facts.dmaLogging === null ? null : { ...facts.dmaLogging, maxRanges: 1 } }),
    ],
  ];

  it.each(mistakes)("%s, and tells in a few operations how", async (_what, expected) => {
    const found = await fuzz({ model: "mlx5", dma: "auto", messages: 100_000, seed: 1, expected }).catch(
      (error: unknown) => error,
    );
    expect(found).toBeInstanceOf(FuzzFailure);
    const { operations } = found as FuzzFailure;
    expect(operations.length).toBeLessThanOrEqual(12);
    // Done again as they are printed, they tell a server that is right from one that is not.
    expect(await replay("mlx5", "auto", operationsFromText(operationsToText(operations)))).toBeUndefined();
  });
});
