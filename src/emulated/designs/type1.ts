import type { ContainerMember, ContainerTracking } from "../../host/designs.js";
import type { BitmapQuery } from "../../host/host.js";
import type { PinLog } from "../../iommufd/pin-log.js";
import { iovaOf, PAGE_SIZE } from "../../memory/address.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import { EmulatedIommufd } from "../iommufd.js";
import type { PhysicalMemory } from "../physical-memory.js";
import { Type1Container } from "../type1/container.js";

/**
 * The legacy container's view of a machine's devices. They go on translating through iommufd; the container has the
 * same memory mapped, and judges from the mdevs' pins, or, where one device pins nothing, from nothing.
 */
export async function openType1({
  members,
  memory,
  physical,
}: {
  members: readonly ContainerMember[];
  memory: GuestMemory;
  physical: PhysicalMemory;
}): Promise<ContainerTracking> {
  const container = new Type1Container({ physical });
  for (const [port, { device }] of members.entries()) {
    const pins = device.mdev ? pinsOf(device) : null;
    await container.addDevice({ port, iommu: null, pinnedScope: pins !== null, ...(pins === null ? {} : { pins }) });
  }
  for (const { firstPage, pages, arena, arenaPage, writeable } of memory.regions) {
    const span = { arena: memory.arenas[arena], offset: arenaPage * PAGE_SIZE, length: pages * PAGE_SIZE };
    await container.mapDma({ iova: iovaOf(firstPage), span, readable: true, writeable });
  }
  return {
    reportsEverything: !container.pinnedScope,
    readableWhen: "always",
    start: () => container.dirtyPagesStart(),
    getBitmap: (query: Omit<BitmapQuery, "pageSize">) => container.dirtyPagesGetBitmap(query),
    stop: () => container.dirtyPagesStop(),
    [Symbol.asyncDispose]: async () => {
      await container.dirtyPagesStop();
      for (const port of members.keys()) await container.removeDevice(port);
    },
  };
}

/** What an mdev pins, through its iommufd access; null where that can't be seen. */
function pinsOf({ iommufd, deviceId }: ContainerMember["device"]): PinLog | null {
  return iommufd instanceof EmulatedIommufd ? iommufd.accessOf(deviceId).pins : null;
}
