import { openSync, writeSync } from "node:fs";
import { createEmulatedMachine, type EmulatedMachine } from "../../src/emulated/machine.js";
import { receive } from "../../src/migration/destination.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { machineOf, NIC, VF } from "../support/machines.js";
import { writings } from "../support/stamps.js";

/*
 * One side of a migration of a real machine, to be killed or stopped at any moment. It prints what happens as lines of JSON,
 * and writes to a file, which outlives it, when its machine wrote memory: a 64-bit time of CLOCK_MONOTONIC for each look
 * at which there was something new.
 *   node kill-side.js destination JOURNALS WRITTEN   |   node kill-side.js source JOURNALS WRITTEN PORT
 */

/** Between two looks at what the machine has written. */
const LOOK_MS = 5;
/** Shorter than they are by default, so that a run takes seconds; goMs above runningMs, as there. */
const TIMEOUTS = { acceptMs: 20_000, deviceMs: 10_000, readyMs: 10_000, runningMs: 700, goMs: 2500, peerMs: 5000 };
/** What each machine marks its units with. */
export const INCARNATIONS = { source: 1, destination: 2 } as const;

const [, , side, journalDirectory, written, port] = process.argv;
const tell = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);

// The driver is gone, or has seen enough: so is this.
process.stdin.on("end", () => process.exit(0)).resume();

/** Writes down when the machine's own instance wrote last, over and over. */
function watch(machine: EmulatedMachine, incarnation: number): void {
  const file = openSync(written, "a");
  const time = new BigUint64Array(1);
  setInterval(() => {
    const lastNs = writings(machine.memory).get(incarnation)?.lastNs ?? 0n;
    if (lastNs <= time[0]) return;
    time[0] = lastNs;
    writeSync(file, time);
  }, LOOK_MS);
}

if (side === "destination") {
  const listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  tell({ port: listener.endpoint.port });
  let machine: EmulatedMachine | undefined;
  const result = await receive({
    source: acceptedSource(listener, await listener.acceptControl()),
    createMachine: async (description) => {
      machine = await createEmulatedMachine(description, { paused: true, incarnation: INCARNATIONS.destination });
      watch(machine, INCARNATIONS.destination);
      return machine;
    },
    audit: async () => (await machine?.audit()) ?? { stamps: null, written: {} },
    journalDirectory,
    timeouts: TIMEOUTS,
  });
  tell({ outcome: result.outcome });
} else if (side === "source") {
  const description = machineOf([VF, NIC]);
  const machine = await createEmulatedMachine(description, { incarnation: INCARNATIONS.source });
  watch(machine, INCARNATIONS.source);
  const { result, verified, error } = await migrate({
    machine,
    description,
    transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: Number(port) } }),
    policy: { ...DEFAULT_POLICY, trackers: { vf0: "device" } },
    design: "split",
    downtimeLimitMs: 2000,
    channels: 1,
    journalDirectory,
    timeouts: TIMEOUTS,
    hooks: { beforePhase: (phase) => void tell({ phase }) },
  });
  tell({ result, verified, code: error?.code ?? null });
}
// The machine runs on, where it runs.
