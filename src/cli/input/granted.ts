import { statSync } from "node:fs";
import { UsageError } from "../../errors.js";
import { type DeviceDescription, isServed, type MachineDescription, type NamedFiles } from "../../host/description.js";

/**
 * What a destination's operator lets it open for a machine that comes: `dirtmap receive`'s --file, --socket and --shared-folder. What
 * the source names is not opened, whatever rights the destination has.
 */
export interface Granted {
  /** By device: the file of a disk, or of a trace. */
  readonly files: Readonly<Record<string, string>>;
  /** By device: the socket of the device that takes over. */
  readonly sockets: Readonly<Record<string, string>>;
  /** A folder: a file that the source names and that lies in it may be opened. */
  readonly folder?: string | undefined;
}

/**
 * The machine with the paths that may be opened for it here.
 * @param named the files that the source has, by device
 * @throws UsageError `NOT_GRANTED` for a device that needs one and has none; the refusal says nothing of what exists here
 */
export function withGranted(description: MachineDescription, named: NamedFiles, granted: Granted): MachineDescription {
  return {
    ...description,
    devices: description.devices.map((device) => grantedDevice(device, named.get(device.id), granted)),
  };
}

function grantedDevice(
  device: DeviceDescription,
  named: string | undefined,
  { files, sockets, folder }: Granted,
): DeviceDescription {
  const { id } = device;
  if (isServed(device) && device.serve !== true) {
    if (!Object.hasOwn(sockets, id)) {
      throw notGranted(
        `'${id}' runs in another process`,
        `serve the device that takes over, and give --socket ${id}=PATH`,
      );
    }
    return { ...device, destinationSocket: sockets[id] };
  }
  if (device.model !== "nvme" && device.model !== "blk" && device.model !== "replay") return device;
  const path = Object.hasOwn(files, id) ? files[id] : folder === undefined ? undefined : named;
  if (path === undefined) {
    // A disk that the source makes up is made up here as well.
    if (named === undefined && device.model === "blk") return device;
    throw notGranted(
      `'${id}' has a file`,
      `give --file ${id}=FILE, or --shared-folder FOLDER with the source's own path in it`,
    );
  }
  const within = Object.hasOwn(files, id) ? undefined : folder;
  return device.model === "replay" ? { ...device, trace: path, within } : { ...device, file: path, within };
}

function notGranted(has: string, option: string): UsageError {
  return new UsageError(`${has}, and the destination was given none to open for it`, {
    code: "NOT_GRANTED",
    remedy: `start \`dirtmap receive\` anew: ${option}`,
  });
}

/**
 * The folder of --shared-folder, which is there.
 * @throws UsageError `BAD_OPTION`
 */
export function grantedFolder(folder: string): string {
  const refuse = (what: string, remedy: string) =>
    new UsageError(`--shared-folder ${folder}: ${what}`, { code: "BAD_OPTION", remedy });
  // Where an opened file lies is read from /proc.
  if (process.platform !== "linux") throw refuse("needs Linux", "name files by device: --file DEV=FILE");
  if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true) return folder;
  throw refuse("it is not a folder", "name the folder that has the machines' files");
}

/** What the destination on this machine may open: the operator is the same, and has named it all. */
export function grantsOf({ devices }: MachineDescription): Pick<Granted, "files" | "sockets"> {
  const files: Record<string, string> = {};
  const sockets: Record<string, string> = {};
  for (const device of devices) {
    if (device.destinationSocket !== undefined) sockets[device.id] = device.destinationSocket;
    const file = "trace" in device ? device.trace : "file" in device ? device.file : undefined;
    if (file !== undefined && device.socket === undefined) files[device.id] = file;
  }
  return { files, sockets };
}
