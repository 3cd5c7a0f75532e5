import { PCI_COMMAND, PCI_COMMAND_MASTER } from "../../devices/pci-model.js";
import type { Message } from "../message-socket.js";
import { logReport, mappedReport, writeCounters } from "../server/counters.js";
import type { ProxiedDevice } from "./proxied-device.js";

/** What is told of a device of which nothing else is known. */
const MODEL = "vfio-user";

/** DIRTMAP_COMMAND.COUNTERS: as Dirtmap's own servers tell them, and what the server at the other side can. */
export async function tellCounters(message: Message, device: ProxiedDevice): Promise<Uint8Array> {
  const { id, server, memory, logging, dma, dmaLogging } = device;
  const isThere = server !== null;
  const migration = server?.facts.migration ?? null;
  const state = isThere && migration !== null ? await device.refresh() : null;
  const command = isThere ? await server.readConfig(PCI_COMMAND, 1).catch(() => null) : null;
  return writeCounters(message, {
    id,
    model: MODEL,
    state,
    failure: isThere ? null : "its server is gone",
    migration: device.movement.custody.report,
    busMaster: ((command?.[0] ?? 0) & PCI_COMMAND_MASTER) !== 0,
    tracking: { tracksInternally: dmaLogging !== null, tracksThroughContainer: false },
    dmaLogging,
    log: logReport(logging.state),
    writePath: { ...device.writePath.state, possible: device.writePaths },
    mapped: mappedReport(memory),
    waitsForState: device.movement.waitsForState,
    dma: { ...memory.counts, regions: memory.size },
    messages: device.messages,
    shape: { stateVersion: null, facts: {} },
    problem: null,
    device: {},
    trail: null,
    proxy: { server: server?.path ?? null, dma, migration, log: server?.facts.log ?? false },
  });
}
