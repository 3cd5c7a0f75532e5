import { createEmulatedMachine, type EmulatedMachine } from "../../src/emulated/machine.js";
import { receive } from "../../src/migration/destination.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { machineOf, NIC, pause, VF } from "./machines.js";
import { writings } from "./stamps.js";

/*
 * One side of a migration of a real machine, in a process of its own, to be killed or stopped. What happens to it, and
 * what its memory says of who wrote when, it prints as lines of JSON.
 *   node machine-process.js destination JOURNALS   |   node machine-process.js source JOURNALS PORT HOLD-IN-PHASE
 */

const [, , side, journalDirectory, port, holdIn] = process.argv;
const tell = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);

// Whoever started this is gone: so is this.
process.stdin.on("end", () => process.exit(3)).resume();
setTimeout(() => process.exit(4), 60_000).unref();

if (side === "destination") {
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  tell({ port: listener.endpoint.port });
  let machine: EmulatedMachine | undefined;
  const result = await receive({
    source: acceptedSource(listener, await listener.acceptControl()),
    createMachine: async (description) => {
      machine = await createEmulatedMachine(description, { paused: true, incarnation: 2 });
      return machine;
    },
    audit: async () => (await machine?.audit()) ?? { stamps: null, written: {} },
    journalDirectory,
  });
  await pause(100);
  const own = machine === undefined ? undefined : writings(machine.memory).get(2);
  tell({ outcome: result.outcome, units: own?.units ?? 0, firstNs: String(own?.firstNs ?? "") });
  await machine?.[Symbol.asyncDispose]();
} else {
  const description = machineOf([VF, NIC]);
  await using machine = await createEmulatedMachine(description, { incarnation: 1 });
  const report = await migrate({
    machine,
    description,
    transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: Number(port) } }),
    policy: DEFAULT_POLICY,
    design: "split",
    journalDirectory,
    hooks: {
      beforePhase: async (phase) => {
        tell({ phase });
        // Here the process is killed.
        if (phase === holdIn) await pause(30_000);
      },
    },
  });
  tell({ result: report.result });
}
process.exit(0);
