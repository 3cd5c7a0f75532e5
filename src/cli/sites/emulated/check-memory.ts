import { UsageError } from "../../../errors.js";
import { type DeviceDescription, type MachineDescription, platformOf } from "../../../host/description.js";
import { MiB } from "../../../memory/address.js";
import { layoutRegions } from "../../../memory/guest-memory.js";
import { formatSize } from "../../../observe/format.js";

/** What a process of Node takes that serves a device. */
const SERVER_BYTES = 64 * MiB;

/**
 * Checks that a machine's memory can be had, before anything is started: the guest's, its devices', and that of the processes
 * that are started for them.
 * @param where how many machines run here, two where the destination is on this machine too; or that this is the destination
 * @param remedy what would work, for commands without `--memory`
 * @throws UsageError `MEMORY_DOES_NOT_FIT`
 */
export function checkMemory(description: MachineDescription, where: 1 | 2 | "destination", remedy?: string): void {
  const { memory } = description;
  layoutRegions(memory, platformOf(description));
  const copies = where === 2 ? 2 : 1;
  const available = process.availableMemory();
  const besides = description.devices.reduce((sum, device) => sum + bytesBesides(device), 0);
  if ((memory + besides) * copies <= available) return;
  const devices = besides === 0 ? "" : ` and ${formatSize(besides)} for its devices`;
  const here = copies === 2 ? ", and the destination's is needed too" : "";
  const most = Math.floor((available / copies - besides) / MiB);
  throw new UsageError(
    `guest memory of ${formatSize(memory)}${devices} does not fit: ${formatSize(available)} available${here}`,
    {
      code: "MEMORY_DOES_NOT_FIT",
      remedy:
        remedy ??
        (where === "destination"
          ? "migrate to a destination that has more"
          : most < 4
            ? "give it fewer devices, or devices with less memory"
            : `give --memory ${most}M or less`),
    },
  );
}

function bytesBesides(device: DeviceDescription): number {
  // A server that is there already has what it needs.
  if (device.socket !== undefined) return 0;
  const own = device.model === "vgpu" ? device.vram : device.model === "dma-engine" ? device.memory : 0;
  return own + (device.serve === true ? SERVER_BYTES : 0);
}
