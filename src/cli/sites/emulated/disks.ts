import { closeSync, ftruncateSync, openSync } from "node:fs";
import { join } from "node:path";
import type { MachineDescription } from "../../../host/description.js";
import { MiB } from "../../../memory/address.js";
import { cannotWrite, ELSEWHERE_TEMPORARY } from "../../../sys/output-file.js";
import { temporaryFolder } from "../../../sys/temporary-folder.js";

/** Of a disk that is made: sparse, so that it takes what is written. */
const DISK_BYTES = 64 * MiB;

/** A machine whose disks all have files. Disposing removes those that were made. */
export interface WithDisks extends Disposable {
  readonly description: MachineDescription;
}

/**
 * Makes the files of NVMe disks that name none, empty, in the temporary directory. A destination must reach them under the
 * same names, as one on this machine does: the contents of disks are not migrated.
 */
export function withDisks(description: MachineDescription): WithDisks {
  const lacks = description.devices.some(isDiskWithoutFile);
  if (!lacks) return { description, [Symbol.dispose]: () => {} };
  const folder = temporaryFolder("disks");
  try {
    const devices = description.devices.map((device) => {
      if (!isDiskWithoutFile(device)) return device;
      const file = join(folder.path, `${device.id}.img`);
      const fd = openSync(file, "wx", 0o600);
      try {
        ftruncateSync(fd, DISK_BYTES);
      } finally {
        closeSync(fd);
      }
      return { ...device, file };
    });
    return { description: { ...description, devices }, [Symbol.dispose]: () => folder[Symbol.dispose]() };
  } catch (error) {
    folder[Symbol.dispose]();
    throw cannotWrite(folder.path, error, ELSEWHERE_TEMPORARY);
  }
}

/** Of a device at a socket, its server knows the file. */
function isDiskWithoutFile(device: MachineDescription["devices"][number]): boolean {
  return device.model === "nvme" && device.file === undefined && device.socket === undefined;
}
