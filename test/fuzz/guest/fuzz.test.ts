import { describe, expect, it } from "vitest";
import { operationsFromText, operationsToText } from "../operation.js";
import { fuzzGuest, GuestFuzzFailure, replayGuest } from "./fuzz.js";
import type { GuestOperation } from "./operation.js";
import { GUEST_MODELS, type Side } from "./side.js";

/*
 * A moment of what `npm run test:fuzz` does for hours. The seeds are the same every time: what this finds, it finds again.
 */

const OPERATIONS = 800;

describe.runIf(process.platform === "linux")("a device, whatever its guest does,", () => {
  it.each(GUEST_MODELS)("writes where it may, logs what it writes, and can be revived: %s", async (model) => {
    const { tally } = await fuzzGuest({ model, operations: OPERATIONS, seed: 1 });
    for (const what of ["write", "read", "work", "log", "during"]) expect(tally.get(what)).toBeGreaterThan(0);
  });
});

describe.runIf(process.platform === "linux")("the fuzzer of guests finds", () => {
  const writes = (side: Side, each: (write: Side["device"]["memory"]["write"], args: WriteArguments) => null) => {
    const { memory } = side.device;
    const write = memory.write.bind(memory);
    memory.write = (...args) => write(...args) ?? each(write, args);
  };
  const wrong: [what: string, tells: RegExp, sabotage: (side: Side) => void][] = [
    [
      "a page that is not in the log",
      /in the log/,
      (side) => {
        const { memory } = side.device;
        const write = memory.write.bind(memory);
        memory.write = (...args) => {
          const { log } = memory;
          memory.log = null;
          const fault = write(...args);
          memory.log = log;
          return fault;
        };
      },
    ],
    [
      "a byte that is written beside what the device was given",
      /written by nobody/,
      (side) =>
        writes(side, () => {
          side.memory[0] ^= 1;
          return null;
        }),
    ],
    [
      "a DMA across a page",
      /a DMA of/,
      (side) =>
        writes(side, (write, [page, , source]) => {
          write(page, 4090, source, 0, 8);
          return null;
        }),
    ],
    [
      "a register that throws",
      /has failed/,
      (side) => {
        const { model } = side.device;
        const write = model.regionWrite.bind(model);
        model.regionWrite = (region, offset, source) => {
          if (region === 0 && offset === 0x24) throw new Error("a bug");
          write(region, offset, source);
        };
      },
    ],
    [
      "a state that is not loaded",
      /after a migration/,
      (side) => {
        const { model } = side.device;
        const load = model.load.bind(model);
        model.load = (state) => {
          load(state);
          model.reset();
        };
      },
    ],
    [
      "a slice that does not end",
      /DMA in a slice/,
      (side) => {
        const { device } = side;
        const run = device.run.bind(device);
        device.run = (budgetMs) => {
          for (let i = 0; i < 500; i++) device.memory.write(0x100, 0, side.peek(0x100000, 1), 0, 1);
          return run(budgetMs);
        };
      },
    ],
  ];

  it.each(wrong)("%s, and tells in a few operations how", async (_what, tells, sabotage) => {
    const found = await fuzzGuest({ model: "nvme", operations: 100_000, seed: 1, sabotage }).catch(
      (error: unknown) => error,
    );
    expect(found).toBeInstanceOf(GuestFuzzFailure);
    const { message, operations } = found as GuestFuzzFailure;
    expect(message).toMatch(tells);
    expect(operations.length).toBeLessThanOrEqual(40);
    // Done again as they are printed, they tell a device that is right from one that is not.
    const again = operationsFromText<GuestOperation>(operationsToText(operations));
    expect(await replayGuest("nvme", again, sabotage)).toMatch(tells);
    expect(await replayGuest("nvme", again)).toBeUndefined();
  });
});

type WriteArguments = Parameters<Side["device"]["memory"]["write"]>;
