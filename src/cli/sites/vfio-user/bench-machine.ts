import { enableBusMaster, setBuffers } from "../../../devices/workload.js";
import type { BenchMachine, BenchSite, DmaWitness } from "../../../evidence/trackers/site.js";
import { createPassthroughMachine } from "../../../host/passthrough-machine.js";
import { MiB, PAGE_SIZE } from "../../../memory/address.js";
import { createGuestMemory } from "../../../memory/guest-memory.js";
import { shareGuestMemory } from "../../../memory/shared-guest-memory.js";
import { UndoStack } from "../../../tracking/undo.js";
import { VfioUserDevice } from "../../../vfio-user/client/device.js";
import { checkDevices } from "../../input/policy.js";
import { witnessOf } from "../device-witness.js";
import { openVfioUserHost } from "../hosts.js";

/** Where buffers begin: below lie the guest's firmware and its real-mode memory. */
const FIRST_BUFFER_PAGE = MiB / PAGE_SIZE;
/** The share of memory that one device is given; less where there are many. */
const BUFFER_SHARE = 0.12;
/** That all devices may take together: RAM below the PCI hole holds it in any case. */
const ALL_SHARE = 0.5;

/**
 * Devices that other processes serve, with memory of our own mapped for them. One of Dirtmap's models is given buffers there,
 * and writes to them at the rate that it is served with; another server's does what it does without a driver. A device that
 * has a client is refused by its server.
 * @throws UsageError `UNKNOWN_DEVICE`
 */
export async function servedSite(
  sockets: readonly string[],
  { only, memoryBytes }: { only?: readonly string[] | undefined; memoryBytes: number },
): Promise<BenchSite> {
  await using named = await openVfioUserHost(sockets);
  const ids = (await named.devices()).map(({ id }) => id);
  checkDevices(ids, only);
  return {
    host: "vfio-user",
    scenario: null,
    measures: "devices that other processes serve over vfio-user, each at the rate that it is served with",
    memoryBytes,
    sizes: [memoryBytes / 4, memoryBytes],
    devices: only ?? null,
    leftOut: [],
    open: (variant) => open(sockets, ids, variant.memoryBytes),
  };
}

async function open(sockets: readonly string[], ids: readonly string[], memoryBytes: number): Promise<BenchMachine> {
  const undo = new UndoStack();
  try {
    const memory = createGuestMemory(memoryBytes);
    const shared = shareGuestMemory(memory);
    undo.add("close the guest's memory", async () => shared[Symbol.dispose]());
    const host = await openVfioUserHost(sockets);
    undo.add("close the devices", () => host[Symbol.asyncDispose]());
    const machine = await createPassthroughMachine({ host, memory, devices: ids.map((id) => ({ id, hostId: id })) });
    undo.add("close the machine", () => machine[Symbol.asyncDispose]());
    const share = Math.min(BUFFER_SHARE, ALL_SHARE / ids.length);
    const pages = Math.max(1, Math.floor((share * memoryBytes) / PAGE_SIZE));
    const witnesses = new Map<string, DmaWitness>();
    for (const [index, { id, vfio }] of machine.devices.entries()) {
      if (!(vfio instanceof VfioUserDevice) || (await vfio.stamps()) === null) continue;
      await setBuffers(vfio, [{ firstPage: FIRST_BUFFER_PAGE + index * pages, pages }]);
      await enableBusMaster(vfio);
      witnesses.set(id, witnessOf(vfio));
    }
    return { machine, witnesses, groups: new Map(), [Symbol.asyncDispose]: () => undo.undo() };
  } catch (error) {
    return undo.undoBecauseOf(error);
  }
}
