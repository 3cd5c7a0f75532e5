import { type ReceiveResult, receiveBy } from "../migration/destination.js";
import type { MovedMachine } from "../migration/memory-mover.js";
import type { MigrationReport } from "../migration/report.js";
import { type HandoverOptions, migrateBy } from "../migration/source.js";
import { connectControl } from "../migration/transport/connect.js";
import { formatEndpoint } from "../migration/transport/endpoint.js";
import { listen } from "../migration/transport/listener.js";
import { DestinationGuest } from "./destination-guest.js";
import { QemuDestination } from "./destination-memory.js";
import type { Qemu } from "./qmp/qemu.js";
import { SourceGuest } from "./source-guest.js";
import { QemuMover, type QemuMoverOptions } from "./source-mover.js";

export interface MoveOptions extends Partial<QemuMoverOptions> {
  readonly address: string;
  readonly handover: HandoverOptions & { readonly journalDirectory: string };
  /** What the migration is told of the guest. */
  readonly machine?: (guest: SourceGuest) => MovedMachine;
}

export interface Moved {
  readonly report: MigrationReport;
  readonly received: ReceiveResult<DestinationGuest>;
  /** What the destination could not do in the end. */
  readonly warnings: readonly string[];
}

/** For tests: moves a guest between two QEMUs, as `dirtmap migrate` and `dirtmap receive` do, in one process. */
export async function moveGuest(
  source: Qemu,
  destination: Qemu,
  { address, handover, machine = (guest) => guest, ...options }: MoveOptions,
): Promise<Moved> {
  const { journalDirectory } = handover;
  const warnings: string[] = [];
  const warn = (text: string) => warnings.push(text);
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const { endpoint } = listener;
  const open = () => DestinationGuest.open(destination, { warn });
  const receiving = listener
    .acceptControl()
    .then((control) =>
      receiveBy(
        ({ signal }) => new QemuDestination(open, { ...options, address, warn }, signal),
        { from: "test", control },
        { journalDirectory },
      ),
    );
  receiving.catch(() => {});
  await using guest = await SourceGuest.open(source);
  const report = await migrateBy(
    new QemuMover(guest, { ...options, address }),
    machine(guest),
    { destination: formatEndpoint(endpoint), connect: (signal) => connectControl({ endpoint, signal }) },
    { runAfterMs: 0, ...handover },
  );
  const received = await receiving;
  if ("machine" in received) await received.machine[Symbol.asyncDispose]();
  return { report, received, warnings };
}
