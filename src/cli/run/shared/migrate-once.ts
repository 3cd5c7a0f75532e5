import type { MigrationRequest } from "../../../evidence/designs/migrations.js";
import { sourceTransport } from "../../../migration/network.js";
import type { MigrationReport } from "../../../migration/report.js";
import { migrate } from "../../../migration/source.js";
import { readEndpoint } from "../../input/endpoint.js";
import { grantsOf } from "../../input/granted.js";
import { withDisks } from "../../sites/emulated/disks.js";
import { openMachine } from "../../sites/hosts.js";
import { startLocalDestination } from "../../sites/local-destination.js";

/** Builds a machine, lets it run, and moves it to a process of its own on this machine; nothing of it is left. */
export async function migrateOnce(request: MigrationRequest): Promise<MigrationReport> {
  const { signal } = request;
  using disks = withDisks(request.description);
  const { description } = disks;
  await using machine = await openMachine(description);
  await using local = await startLocalDestination(signal, grantsOf(description));
  const transport = sourceTransport(await readEndpoint(local.ready, "client", {}));
  return await migrate({ ...request, description, machine, transport });
}
