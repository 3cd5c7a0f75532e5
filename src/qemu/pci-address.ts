import { DirtmapError } from "../errors.js";
import type { GuestDevice } from "./guest.js";
import type { PciFunction, Qemu } from "./qmp/qemu.js";

/** Where a function answers to configuration cycles. */
export interface PciAddress {
  readonly bus: number;
  readonly slot: number;
  readonly function: number;
}

/**
 * Where devices answer now, in their order. The numbers of buses behind bridges are the guest's to give: they are known once its
 * firmware or its kernel has given them, and only QEMU knows them.
 * @throws DirtmapError `NOT_ENUMERATED` for a device behind a bridge whose bus has no number yet
 */
export async function pciAddressesOf(qemu: Qemu, devices: readonly GuestDevice[]): Promise<PciAddress[]> {
  const roots = await qemu.pci();
  const functions = roots.flatMap(({ devices: its }) => its.flatMap(withBehind));
  return devices.map(({ name, bridges, devfn }) => {
    const bus = bridges.reduce((above, bridge) => busBehind(functions, above, bridge, name), 0);
    return { bus, slot: devfn >> 3, function: devfn & 7 };
  });
}

function withBehind(its: PciFunction): PciFunction[] {
  return [its, ...(its.pci_bridge?.devices ?? []).flatMap(withBehind)];
}

function busBehind(functions: readonly PciFunction[], above: number, devfn: number, device: string): number {
  const found = functions.find(({ bus, slot, function: its }) => bus === above && slot * 8 + its === devfn);
  const secondary = found?.pci_bridge?.bus.secondary ?? 0;
  if (secondary > 0) return secondary;
  const bridge = `${above}:${devfn >> 3}.${devfn & 7}`;
  throw new DirtmapError(`the bus of '${device}', behind the bridge at ${bridge}, has no number yet`, {
    code: "NOT_ENUMERATED",
    remedy: "wait until the guest's firmware or kernel has found its devices",
  });
}
