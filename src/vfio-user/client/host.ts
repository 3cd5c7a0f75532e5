import { basename } from "node:path";
import { UsageError } from "../../errors.js";
import type { DeviceSummary, Host } from "../../host/host.js";
import { UapiError } from "../../uapi/errno.js";
import { controlPath, devicePath, isControlPath } from "../control-path.js";
import type { DmaMode } from "../server/client-memory.js";
import { Connection } from "./connection.js";
import { readCounters } from "./counters.js";
import { VfioUserDevice, type VfioUserDeviceOptions } from "./device.js";
import { VfioUserIommufd } from "./iommufd.js";

/** The place of a served device, and the way to use it. */
export interface VfioUserPlace {
  /** The path of the server's socket. */
  readonly path: string;
  /** Default: made from the socket's name. */
  readonly id?: string;
  /** Default: auto. */
  readonly dma?: DmaMode;
  /** See {@link VfioUserDeviceOptions.check}. */
  readonly check?: VfioUserDeviceOptions["check"];
}

/**
 * A host of devices behind vfio-user sockets. If a device already has a client and its server is Dirtmap's, it can be queried over
 * its control socket, PATH.control ({@link VfioUserHost.openControl}).
 */
export class VfioUserHost implements Host {
  readonly name = "vfio-user";
  readonly #places = new Map<string, VfioUserPlace>();
  readonly #open = new Map<string, VfioUserDevice>();
  readonly #iommufds: VfioUserIommufd[] = [];
  readonly #limitMs: number | undefined;

  /** @param options.limitMs the longest wait for an answer, in milliseconds (default: 10 000) @throws UsageError `BAD_OPTION` */
  constructor(places: readonly VfioUserPlace[], options: { limitMs?: number } = {}) {
    this.#limitMs = options.limitMs;
    for (const place of places) {
      const { path } = place;
      if ([...this.#places.values()].some((other) => other.path === path)) {
        throw new UsageError(`the socket '${path}' is named twice`, { code: "BAD_OPTION", remedy: "name it once" });
      }
      this.#places.set(place.id ?? this.#idOf(path), place);
    }
  }

  /** Lists the devices. Asks Dirtmap's own servers for their model, over their control sockets. */
  async devices(): Promise<DeviceSummary[]> {
    const summaries = [...this.#places].map(async ([id, { path }]) => ({
      id,
      model: this.#open.get(id)?.model ?? (await modelAt(path, this.#limitMs)),
      kind: "pci" as const,
      iommuGroup: null,
    }));
    return Promise.all(summaries);
  }

  async openIommufd(): Promise<VfioUserIommufd> {
    const iommufd = new VfioUserIommufd();
    this.#iommufds.push(iommufd);
    return iommufd;
  }

  /** Opens a device. @throws UapiError as {@link Host.openDevice}, and those of the connection */
  openDevice(id: string): Promise<VfioUserDevice> {
    return this.#openAt(id, (path) => path);
  }

  /**
   * Opens a device of Dirtmap's own server over its control socket, whichever client it has, and leaves it unchanged.
   * @throws UapiError as {@link openDevice}; ENOENT or ECONNREFUSED if there is no such socket
   */
  openControl(id: string): Promise<VfioUserDevice> {
    return this.#openAt(id, controlPath);
  }

  async #openAt(id: string, socket: (path: string) => string): Promise<VfioUserDevice> {
    const call = { syscall: "connect", attempted: `open device '${id}'` };
    const place = this.#places.get(id);
    if (place === undefined) {
      const ids = [...this.#places.keys()].join(", ") || "none";
      throw new UapiError("ENODEV", { ...call, remedy: `there are: ${ids}` });
    }
    if (this.#open.has(id)) throw new UapiError("EBUSY", { ...call, remedy: "close it first: it is open" });
    const path = socket(place.path);
    const device = await VfioUserDevice.open({
      path,
      id,
      control: isControlPath(path),
      ...(place.dma === undefined ? {} : { dma: place.dma }),
      ...(place.check === undefined ? {} : { check: place.check }),
      ...(this.#limitMs === undefined ? {} : { limitMs: this.#limitMs }),
      onClose: () => this.#open.delete(id),
    });
    this.#open.set(id, device);
    return device;
  }

  /** Closes devices, then iommufds. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled([...this.#open.values()].map((device) => device[Symbol.asyncDispose]()));
    for (const iommufd of this.#iommufds) await iommufd[Symbol.asyncDispose]();
  }

  /** The socket's name in letters that ids may have, with a number where it is taken. */
  #idOf(path: string): string {
    const name = basename(devicePath(path))
      .toLowerCase()
      .replaceAll(/[^a-z0-9._-]/g, "-")
      .replace(/^[^a-z0-9]+/, "")
      .slice(0, 28);
    const base = name === "" ? "device" : name;
    let id = base;
    for (let number = 2; this.#places.has(id); number++) id = `${base}-${number}`;
    return id;
  }
}

async function modelAt(path: string, limitMs: number | undefined): Promise<string> {
  try {
    using connection = await Connection.open(controlPath(path), limitMs === undefined ? {} : { limitMs });
    return (await readCounters(connection))?.model ?? "vfio-user";
  } catch (error) {
    // Another server has no such socket; whether the device is there is found out when it is opened.
    if (error instanceof UapiError) return "vfio-user";
    throw error;
  }
}
