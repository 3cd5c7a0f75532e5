import { DirtmapError } from "../errors.js";
import { type Timeouts, within } from "./deadline.js";
import { DeviceStateReceiver } from "./device-state.js";
import { type MigratableDevice, runAll } from "./lock-step.js";
import type { ControlMessageOf } from "./stream/messages.js";

/** The devices of a machine that arrives: their data on its way in, and their migration states together. */
export class DestinationDevices {
  readonly devices: readonly MigratableDevice[];
  readonly #streams = new Map<string, DeviceStateReceiver>();
  readonly #deviceMs: number;
  readonly #signal: AbortSignal;

  constructor(
    devices: readonly MigratableDevice[],
    { timeouts, signal }: { timeouts: Pick<Timeouts, "deviceMs">; signal: AbortSignal },
  ) {
    this.devices = devices;
    this.#deviceMs = timeouts.deviceMs;
    this.#signal = signal;
  }

  /** All to RESUMING. */
  async open(): Promise<void> {
    for (const { id, vfio } of this.devices) {
      this.#streams.set(id, await within(this.#deviceMs, `${id} in RESUMING`, DeviceStateReceiver.open(vfio)));
    }
  }

  /** Writes a chunk to its device. @throws DirtmapError `BAD_DEVICE_STATE` for one of no device; the device's error */
  async write(message: ControlMessageOf<"DEVICE_STATE">): Promise<void> {
    const stream = this.#streams.get(message.device);
    if (stream === undefined) {
      throw new DirtmapError(`there is no device '${message.device}'`, { code: "BAD_DEVICE_STATE" });
    }
    await within(this.#deviceMs, `${message.device} taking its state`, stream.write(message), this.#signal);
  }

  /** All from RESUMING to STOP: each verifies and takes over what was written. */
  async load(): Promise<void> {
    await Promise.all(
      [...this.#streams.values()].map((stream) =>
        within(this.#deviceMs, `${stream.id} with its state loaded`, stream.finish(), this.#signal),
      ),
    );
  }

  /** All to RUNNING. */
  async run(): Promise<void> {
    await runAll(this.devices, this.#deviceMs);
  }

  /** All to STOP, as far as they go. Never throws. */
  async stop(): Promise<void> {
    await Promise.allSettled(
      this.devices.map(({ id, vfio }) => within(this.#deviceMs, `${id} stopped`, vfio.setState("STOP"))),
    );
  }
}
