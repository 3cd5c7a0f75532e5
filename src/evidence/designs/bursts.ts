import { createSocket } from "node:dgram";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import { DirtmapError } from "../../errors.js";
import type { AttachedDevice, Machine, VfioDevice } from "../../host/host.js";

/** A machine whose devices count what they write, and whose NICs nobody else sends to. */
export interface ScriptedMachine extends Machine {
  readonly devices: readonly ScriptedDevice[];
}

export interface ScriptedDevice extends AttachedDevice {
  readonly vfio: VfioDevice & { counters(): Promise<Record<string, number>> };
}

/** A burst that takes longer has gone wrong. */
const LIMIT_MS = 20_000;
/** How often a device is asked how far it is. */
const LOOK_MS = 1;
/** What a datagram carries: the least that a NIC takes for a frame. */
const FRAME = Buffer.alloc(64, 0x5a);

/**
 * Has the devices of a machine write when they are told to, and be still otherwise: so much the same for every design, and
 * with nothing else to take processor time while a tracker is read.
 */
export class Bursts implements AsyncDisposable {
  readonly #devices: readonly ScriptedDevice[];
  readonly #pages: number;
  readonly #socket = createSocket("udp4");

  /**
   * @param devices those that write; the NICs among them deliver one datagram to at least `pages` buffers
   * @param pages of each one's buffers: all of them
   */
  constructor(devices: readonly ScriptedDevice[], pages: number) {
    this.#devices = devices;
    this.#pages = pages;
    // A datagram that can't be sent is noticed: the device does not write.
    this.#socket.on("error", () => undefined);
  }

  /** Stops the devices: from here on they write in {@link write} only. */
  async still(): Promise<void> {
    await Promise.all(this.#devices.map(({ vfio }) => vfio.setState("STOP")));
  }

  /**
   * Every device writes each of its pages at least once, and is stopped again with its DMA landed.
   * @returns writes that the devices counted meanwhile, by device
   * @throws DirtmapError `DEVICE_SILENT`
   */
  async write(): Promise<Record<string, number>> {
    const before = await this.#counters();
    await Promise.all(this.#devices.map(({ vfio }) => vfio.setState("RUNNING")));
    for (const { udpPort } of before) if (udpPort !== undefined) this.#socket.send(FRAME, udpPort, "127.0.0.1");
    for (const until = performance.now() + LIMIT_MS; ; await pause(LOOK_MS)) {
      const now = await this.#counters();
      const late = now.findIndex(({ units }, index) => units - before[index].units < this.#pages);
      if (late < 0) break;
      if (performance.now() < until) continue;
      const { id } = this.#devices[late];
      throw new DirtmapError(`${id} did not write ${this.#pages} pages in ${LIMIT_MS / 1000} s`, {
        code: "DEVICE_SILENT",
      });
    }
    await this.still();
    const after = await this.#counters();
    return Object.fromEntries(this.#devices.map(({ id }, index) => [id, after[index].units - before[index].units]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = once(this.#socket, "close");
    this.#socket.close();
    await closed;
  }

  #counters(): Promise<Record<string, number>[]> {
    return Promise.all(this.#devices.map(({ vfio }) => vfio.counters()));
  }
}
