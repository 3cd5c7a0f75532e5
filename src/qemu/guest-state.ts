import { z } from "zod";
import { DirtmapError } from "../errors.js";
import { PORT_CONFIG_BYTES } from "./config-space.js";
import type { PciState } from "./pci-state.js";

/*
 * What moves over Dirtmap's connection besides the devices' states, as VCPU_STATE: what QEMU itself keeps of the devices and does
 * not migrate, and whether the guest ran. It comes from another machine, so it is checked.
 */

/** The most vectors that MSI-X has (PCI Local Bus 3.0, 6.8.2.1), by the dwords of their entries. */
const MAX_TABLE_DWORDS = 2048 * 4;
const MAX_DEVICES = 64;

const dword = z.int().min(0).max(0xffff_ffff);

const schema = z.strictObject({
  version: z.literal(1),
  /** The vCPUs ran when the migration began. */
  running: z.boolean(),
  devices: z
    .array(
      z.strictObject({
        id: z.string().max(256),
        config: z.array(dword).length(PORT_CONFIG_BYTES / 4),
        msixTable: z.array(dword).max(MAX_TABLE_DWORDS).nullable(),
      }),
    )
    .max(MAX_DEVICES),
});

/** What the destination restores itself. */
export interface GuestState {
  readonly running: boolean;
  /** PCI states by the devices' names. */
  readonly devices: ReadonlyMap<string, PciState>;
}

export function writeGuestState({ running, devices }: GuestState): Uint8Array {
  const list = Array.from(devices, ([id, { config, msixTable }]) => ({ id, config, msixTable }));
  return new TextEncoder().encode(JSON.stringify({ version: 1, running, devices: list }));
}

/** @throws DirtmapError `BAD_GUEST_STATE` */
export function readGuestState(bytes: Uint8Array): GuestState {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    const { running, devices } = schema.parse(JSON.parse(text));
    return { running, devices: new Map(devices.map(({ id, config, msixTable }) => [id, { config, msixTable }])) };
  } catch (cause) {
    throw new DirtmapError("the state of the source's PCI functions can't be understood", {
      code: "BAD_GUEST_STATE",
      remedy: "use the same version on both sides",
      cause,
    });
  }
}
