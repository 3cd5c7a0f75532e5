import { hex } from "../memory/address.js";
import type { RegionInfo } from "./host.js";
import { type Call, refuse } from "./iommufd-checks.js";

/*
 * What is checked of accesses to a VFIO device's regions and data streams before a driver, a server or a model sees them, the same on
 * every host: as Linux does in drivers/vfio/vfio_main.c, and with its errnos.
 */

/** What pread(2) and pwrite(2) of a region refuse: EINVAL outside of it, or where it can't be read or written. */
export function checkRegionAccess<Region extends RegionInfo>(
  { id, regions }: { readonly id: string; readonly regions: readonly Region[] },
  access: "read" | "write",
  { region: index, offset, bytes }: { region: number; offset: number; bytes: number },
): Region {
  const region = regions.find((candidate) => candidate.index === index);
  const isWhole = [offset, bytes].every((value) => Number.isSafeInteger(value) && value >= 0);
  const isInside = region !== undefined && isWhole && offset + bytes <= region.bytes;
  if (isInside && (access === "read" ? region.readable : region.writeable)) return region;
  const list = regions.map(({ index: i, name, bytes: b }) => `${i} (${name}, ${b} bytes)`).join(", ");
  const attempted = `${access} ${bytes} bytes at ${hex(offset)} of region ${index} of '${id}'`;
  const remedy = isInside
    ? `it can't be ${access === "read" ? "read" : "written"}`
    : `its regions are ${list || "none"}`;
  return refuse("EINVAL", { syscall: `p${access}`, attempted }, remedy);
}

/** That a read of a data stream asks for something. @throws UapiError EINVAL */
export function checkStreamRead(bytes: number, call: Call): void {
  if (!Number.isSafeInteger(bytes) || bytes < 1) refuse("EINVAL", call, "read 1 byte or more");
}

/** A number of bytes that a device has told. @throws UapiError EPROTO for one that no device has */
export function plausibleBytes(value: bigint, { syscall, attempted }: Call): number {
  if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
  const told = { syscall, attempted: `${attempted}: it says ${value} bytes` };
  return refuse("EPROTO", told, "mend its driver or server: no device has that much");
}
