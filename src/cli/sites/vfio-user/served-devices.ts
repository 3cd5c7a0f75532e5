import { join } from "node:path";
import { UsageError } from "../../../errors.js";
import { isServed, type MachineDescription } from "../../../host/description.js";
import { temporaryFolder } from "../../../sys/temporary-folder.js";
import { ServedDevices, type ServedPlace } from "../../../vfio-user/client/served-devices.js";
import { startDeviceProcess } from "./device-process.js";

/**
 * The devices of a machine that run in other processes; undefined where there are none. Those that are to be served for the
 * run get a process each, which ends with them.
 * @param side whose sockets are meant
 * @throws UsageError `NO_DESTINATION_SOCKET`; DirtmapError `DEVICE_PROCESS_FAILED`
 */
export async function openServed(
  { devices, seed }: MachineDescription,
  side: "source" | "destination",
): Promise<ServedDevices | undefined> {
  const served = devices.filter(isServed);
  if (served.length === 0) return undefined;
  const places: ServedPlace[] = [];
  const starting: Promise<AsyncDisposable>[] = [];
  const temporary = temporaryFolder("devices");
  const folder = { [Symbol.asyncDispose]: async () => temporary[Symbol.dispose]() };
  for (const description of served) {
    const { id, serve = false } = description;
    const socket = serve
      ? join(temporary.path, id)
      : side === "source"
        ? description.socket
        : description.destinationSocket;
    if (socket === undefined) {
      await folder[Symbol.asyncDispose]();
      throw new UsageError(`'${id}' runs in another process, and the scenario gives it no destinationSocket`, {
        code: "NO_DESTINATION_SOCKET",
        remedy: "serve the device that takes over at another socket, and name that socket",
      });
    }
    places.push({ description, socket });
  }
  for (const { description, socket } of places) {
    if (description.serve === true) starting.push(startDeviceProcess(description, { socket, seed, side }));
  }
  const started = await Promise.allSettled(starting);
  const processes = started.flatMap((result) => (result.status === "fulfilled" ? result.value : []));
  const owned = [...processes, folder];
  const failed = started.find((result) => result.status === "rejected");
  try {
    if (failed !== undefined) throw failed.reason;
    return new ServedDevices(places, owned);
  } catch (error) {
    await Promise.allSettled(owned.map((one) => one[Symbol.asyncDispose]()));
    throw error;
  }
}
