import { receive } from "../../src/migration/destination.js";
import type { MigrationPhase } from "../../src/migration/events.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { FakeMachine, Witness } from "./fake-machine.js";
import { description } from "./loopback.js";

/*
 * One side of a migration in a process of its own, to be killed or stopped. It prints what happens to it as lines of
 * JSON.   node side-process.js destination JOURNALS   |   node side-process.js source JOURNALS PORT HOLD-IN-PHASE
 */

const [, , side, journalDirectory, port, holdIn] = process.argv;
const tell = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const witness = new Witness();

// Whoever started this is gone: so is this.
process.stdin.on("end", () => process.exit(3)).resume();

if (side === "destination") {
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  tell({ port: listener.endpoint.port });
  const result = await receive({
    source: acceptedSource(listener, await listener.acceptControl()),
    createMachine: () => FakeMachine.create({ name: "destination", witness }),
    journalDirectory,
  });
  tell({ outcome: result.outcome, running: witness.running });
} else {
  await using machine = await FakeMachine.create({ name: "source", witness, running: true });
  const report = await migrate({
    machine,
    description,
    transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: Number(port) } }),
    policy: DEFAULT_POLICY,
    design: "split",
    journalDirectory,
    hooks: {
      beforePhase: async (phase: MigrationPhase) => {
        tell({ phase });
        // Here the process is killed.
        if (phase === holdIn) await new Promise((resolve) => setTimeout(resolve, 30_000));
      },
    },
  });
  tell({ result: report.result, running: witness.running });
}
process.exit(0);
