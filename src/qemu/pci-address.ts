import { DirtmapError } from "../errors.js";
import { type GuestDevice, placeOf } from "./guest.js";
import { isRefusal, type PciFunction, type Qemu } from "./qmp/qemu.js";

/** Where a function answers to configuration cycles. */
export interface PciAddress {
  readonly bus: number;
  readonly slot: number;
  readonly function: number;
}

/** Buses that one can be behind: no machine nests them deeper. */
const MAX_DEPTH = 16;

/**
 * Where a device answers now. The numbers of buses behind bridges are the guest's to give: they are known once its firmware or
 * its kernel has, and only QEMU knows them.
 * @throws DirtmapError `NOT_ENUMERATED` for a device behind a bridge whose bus has no number yet, `UNKNOWN_BUS`
 */
export async function pciAddressOf(qemu: Qemu, device: GuestDevice): Promise<PciAddress> {
  const roots = await qemu.pci();
  const functions = roots.flatMap(({ devices }) => devices.flatMap(withBehind));
  const { bus, devfn } = device;
  return { bus: await busNumber(qemu, bus, functions), slot: devfn >> 3, function: devfn & 7 };
}

function withBehind(its: PciFunction): PciFunction[] {
  return [its, ...(its.pci_bridge?.devices ?? []).flatMap(withBehind)];
}

/** @param path of the bus' object: below that of the bridge that it is behind, or of the host bridge */
async function busNumber(qemu: Qemu, path: string, functions: readonly PciFunction[], depth = 0): Promise<number> {
  const owner = path.slice(0, path.lastIndexOf("/"));
  const place = await placeOf(qemu, owner).catch((error: unknown) => {
    // A host bridge is on no PCI bus.
    if (isRefusal(error)) return null;
    throw error;
  });
  if (place === null) {
    const name = path.slice(owner.length + 1);
    if (name === "pcie.0" || name === "pci.0") return 0;
    throw new DirtmapError(`the number of bus '${name}' can't be found out`, {
      code: "UNKNOWN_BUS",
      remedy: "put the device on the machine's own root bus, or behind a bridge or root port there",
    });
  }
  if (depth >= MAX_DEPTH) throw new DirtmapError("the bridges have no end", { code: "UNKNOWN_BUS" });
  const above = await busNumber(qemu, place.bus, functions, depth + 1);
  const bridge = functions.find(
    ({ bus, slot, function: its }) => bus === above && slot * 8 + its === place.devfn,
  )?.pci_bridge;
  const secondary = bridge?.bus.secondary ?? 0;
  if (secondary > 0) return secondary;
  throw new DirtmapError(
    `the bus behind the bridge at ${above}:${place.devfn >> 3}.${place.devfn & 7} has no number yet`,
    {
      code: "NOT_ENUMERATED",
      remedy: "wait until the guest's firmware or kernel has found its devices",
    },
  );
}
