import { UsageError } from "../../errors.js";
import type { DeviceDescription } from "../../host/description.js";
import type { VfioUserDevice } from "./device.js";
import { VfioUserHost } from "./host.js";
import type { VfioUserIommufd } from "./iommufd.js";

/** A device of a machine that another process serves. */
export interface ServedPlace {
  readonly description: DeviceDescription;
  /** Of the server's socket. */
  readonly socket: string;
}

/** The devices of one machine that other processes serve, and what ends with them. */
export class ServedDevices implements AsyncDisposable {
  readonly #host: VfioUserHost;
  readonly #places: readonly ServedPlace[];
  readonly #owned: readonly AsyncDisposable[];

  /**
   * @param owned ended when the devices are closed: processes that were started for them
   * @throws UsageError `BAD_OPTION` for a socket that is named twice
   */
  constructor(places: readonly ServedPlace[], owned: readonly AsyncDisposable[] = []) {
    this.#places = places;
    this.#owned = owned;
    this.#host = new VfioUserHost(
      places.map(({ description: { id, dma = "auto" }, socket }) => ({ id, path: socket, dma })),
    );
  }

  openIommufd(): Promise<VfioUserIommufd> {
    return this.#host.openIommufd();
  }

  /**
   * Opens a device. One of Dirtmap's own servers must serve what is described; of another's, only the guest could tell.
   * @throws UsageError `WRONG_DEVICE`; UapiError of the connection
   */
  async openDevice(id: string): Promise<VfioUserDevice> {
    const device = await this.#host.openDevice(id);
    const server = await device.serverCounters();
    const place = this.#places.find(({ description }) => description.id === id);
    if (server === null || place === undefined) return device;
    const { description, socket } = place;
    if (server.model === description.model && server.id === id) return device;
    await device[Symbol.asyncDispose]();
    if (description.model === "vfio-user") {
      throw new UsageError(`${socket} serves '${server.id}', a ${server.model} of Dirtmap's own`, {
        code: "WRONG_DEVICE",
        remedy: `write model: ${server.model}${server.id === id ? "" : ` and id: ${server.id}`}; vfio-user is for devices of other servers`,
      });
    }
    throw new UsageError(`${socket} serves '${server.id}', a ${server.model}, and '${id}' is a ${description.model}`, {
      code: "WRONG_DEVICE",
      remedy: `end that server, and start: dirtmap device ${description.model} --id ${id} --socket ${socket}${optionsOf(description)}`,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host[Symbol.asyncDispose]();
    await Promise.allSettled(this.#owned.map((one) => one[Symbol.asyncDispose]()));
  }
}

/** What its server can't do without. */
function optionsOf(description: DeviceDescription): string {
  return description.model === "nvme" ? ` --option file=${description.file ?? "FILE"}` : "";
}
