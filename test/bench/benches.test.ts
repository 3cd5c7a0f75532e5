import { expect, test } from "vitest";
import { run as runChannels } from "../../bench/channels.js";
import { run as runDma } from "../../bench/dma.js";
import { run as runLogs } from "../../bench/logs.js";
import { run as runScan } from "../../bench/scan.js";
import { MiB } from "../../src/memory/address.js";

/*
 * A bench calls what it measures past the program, so that a change of the parts inside can break it while all else works. Here
 * each runs once, as small as it goes. Nothing is said about times.
 */
const SMALLEST: Readonly<Record<string, () => Promise<readonly unknown[]>>> = {
  scan: () => runScan({ sizes: [64 * MiB], repetitions: 1 }),
  logs: () => runLogs({ sizes: [64 * MiB], repetitions: 1 }),
  dma: () => runDma({ rounds: 2 }),
  channels: () => runChannels({ bytes: 16 * MiB, repetitions: 1 }),
};

test.each(Object.keys(SMALLEST))("the bench '%s' runs to its end", async (name) => {
  expect((await SMALLEST[name]()).length).toBeGreaterThan(0);
});
