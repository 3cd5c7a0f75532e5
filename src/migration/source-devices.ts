import type { SavingStream } from "../host/host.js";
import type { Timeouts } from "./deadline.js";
import { within } from "./deadline.js";
import { checkStateSize, DeviceStateSender } from "./device-state.js";
import { type MigratableDevice, type NotTakenBack, startPrecopy, stopAll, takeDevicesBack } from "./lock-step.js";
import type { MovedMachine, PrecopiedStates } from "./memory-mover.js";
import type { Peer } from "./peer.js";

/** The devices of a machine that is moved, at the source: their migration states together, and their data on its way. */
export class SourceDevices implements PrecopiedStates {
  readonly devices: readonly MigratableDevice[];
  readonly #mayP2p: MovedMachine["mayP2p"];
  readonly #peer: Peer;
  readonly #timeouts: Timeouts;
  readonly #signal: AbortSignal;
  readonly #streams = new Map<string, DeviceStateSender>();
  /** Devices that were stopped before the migration came to them. */
  #stoppedBefore: ReadonlySet<string> = new Set();
  #reached: "nothing" | "pre-copy" | "stop" = "nothing";
  #checks = 0;

  constructor(
    devices: readonly MigratableDevice[],
    {
      mayP2p,
      peer,
      timeouts,
      signal,
    }: Pick<MovedMachine, "mayP2p"> & { peer: Peer; timeouts: Timeouts; signal: AbortSignal },
  ) {
    this.devices = devices;
    this.#mayP2p = mayP2p;
    this.#peer = peer;
    this.#timeouts = timeouts;
    this.#signal = signal;
  }

  /** Bytes of state sent so far. */
  get bytes(): number {
    return [...this.#streams.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** All that can go to PRE_COPY. @param stopped devices that are left as they are, until {@link stop} */
  async startPrecopy(stopped: ReadonlySet<string>): Promise<void> {
    this.#stoppedBefore = stopped;
    this.#reached = "pre-copy";
    await startPrecopy(this.devices, stopped, this.#timeouts.deviceMs, this.#openStream);
  }

  async send(): Promise<boolean> {
    let drained = true;
    for (const stream of this.#streams.values()) drained = (await stream.sendPrecopy(this.#signal)) && drained;
    if (this.#streams.size > 0) {
      await this.#peer.send({ type: "CHECK_STATE", round: this.#checks++ });
      await this.#peer.expect(["STATE_TAKEN"], this.#timeouts.readyMs, this.#signal);
    }
    return drained;
  }

  async expectedBytes(): Promise<number> {
    const asked = Promise.all(this.devices.map(({ vfio }) => vfio.dataSize()));
    const sizes = await within(this.#timeouts.deviceMs, "the size of the devices' states", asked);
    // Now, rather than in the downtime.
    for (const [index, { id }] of this.devices.entries()) {
      checkStateSize(id, (this.#streams.get(id)?.bytes ?? 0) + sizes[index]);
    }
    return sizes.reduce((sum, bytes) => sum + bytes, 0);
  }

  /** All to STOP_COPY. The vCPUs must be paused. */
  async stop(): Promise<void> {
    this.#reached = "stop";
    await stopAll(this.devices, this.#stoppedBefore, this.#timeouts.deviceMs, this.#openStream);
  }

  /** In STOP_COPY: sends all that is left of all states. */
  async sendRest(): Promise<void> {
    await Promise.all([...this.#streams.values()].map((stream) => stream.sendRest(this.#signal)));
  }

  /** All back to RUNNING from wherever they are. Returns what could not be done. */
  async takeBack(): Promise<NotTakenBack[]> {
    if (this.#reached === "nothing") return [];
    // Those that were stopped before are in STOP_COPY like the others by now, or still as they were.
    const except: ReadonlySet<string> = this.#reached === "stop" ? new Set() : this.#stoppedBefore;
    return await takeDevicesBack(this.devices, {
      mayP2p: this.#mayP2p,
      deviceMs: this.#timeouts.deviceMs,
      except,
      release: async (device) => await this.#streams.get(device)?.close(),
    });
  }

  /** Closes the data streams. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#streams.values()].map((stream) => stream.close()));
  }

  readonly #openStream = ({ id }: MigratableDevice, stream: SavingStream): void => {
    this.#streams.set(id, new DeviceStateSender(id, stream, (message) => this.#peer.send(message)));
  };
}
