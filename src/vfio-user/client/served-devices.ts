import { UsageError } from "../../errors.js";
import type { DeviceDescription } from "../../host/description.js";
import type { ServerCounters } from "./counters.js";
import type { VfioUserDevice } from "./device.js";
import { VfioUserHost } from "./host.js";
import type { VfioUserIommufd } from "./iommufd.js";

/** A device of a machine that another process serves. */
export interface ServedPlace {
  readonly description: DeviceDescription;
  /** The path of the server's socket. */
  readonly socket: string;
}

/** The devices of one machine that other processes serve, together with the resources that end with them. */
export class ServedDevices implements AsyncDisposable {
  readonly #host: VfioUserHost;
  readonly #owned: readonly AsyncDisposable[];

  /**
   * @param owned resources to dispose once the devices are closed, such as the processes that were started for them
   * @throws UsageError `BAD_OPTION` for a socket that is named twice
   */
  constructor(places: readonly ServedPlace[], owned: readonly AsyncDisposable[] = []) {
    this.#owned = owned;
    this.#host = new VfioUserHost(
      places.map((place) => ({
        id: place.description.id,
        path: place.socket,
        dma: place.description.dma ?? "auto",
        check: (server) => checkServed(place, server),
      })),
    );
  }

  openIommufd(): Promise<VfioUserIommufd> {
    return this.#host.openIommufd();
  }

  /**
   * Opens a device. If the server is Dirtmap's own, it must serve the described device. Other servers can't be checked.
   * @throws UsageError `WRONG_DEVICE`, and the device is left unchanged; UapiError of the connection
   */
  openDevice(id: string): Promise<VfioUserDevice> {
    return this.#host.openDevice(id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host[Symbol.asyncDispose]();
    await Promise.allSettled(this.#owned.map((one) => one[Symbol.asyncDispose]()));
  }
}

function checkServed({ description, socket }: ServedPlace, server: ServerCounters | null): void {
  const { id, model } = description;
  if (server === null || (server.model === model && server.id === id)) return;
  if (model === "vfio-user") {
    throw new UsageError(`${socket} serves '${server.id}', a ${server.model} of Dirtmap's own`, {
      code: "WRONG_DEVICE",
      remedy: `name the socket of a device of another's server, or write model: ${server.model}`,
    });
  }
  throw new UsageError(`${socket} serves '${server.id}', a ${server.model}, and '${id}' is a ${model}`, {
    code: "WRONG_DEVICE",
    remedy: `end that server, and start: dirtmap device ${model} --id ${id} --socket ${socket}${optionsOf(description)}`,
  });
}

/** What its server can't do without. */
function optionsOf(description: DeviceDescription): string {
  return description.model === "nvme" ? ` --option file=${description.file ?? "FILE"}` : "";
}
