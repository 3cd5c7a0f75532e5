import { setTimeout as sleep } from "node:timers/promises";
import type { AttachedDevice } from "../../host/host.js";
import type { MigState } from "../../uapi/vfio.js";
import type { BenchMachine, DmaMark, DmaWitness } from "./site.js";

/*
 * The devices of a machine on the bench, as the bench lets them run and stops them.
 */

/** How long a device may take to write the pages that are wanted of it. */
const WRITE_LIMIT_MS = 10_000;
/** Between two looks at how far it is. */
const LOOK_MS = 2;

/** A device of a machine on the bench. */
export class BenchDevice {
  readonly attached: AttachedDevice;
  readonly id: string;
  /** null: nobody knows what it writes. */
  readonly witness: DmaWitness | null;
  readonly #canStop: boolean;
  #running = true;

  private constructor(attached: AttachedDevice, witness: DmaWitness | null, canStop: boolean) {
    this.attached = attached;
    this.id = attached.id;
    this.witness = witness;
    this.#canStop = canStop;
  }

  /**
   * The devices of a machine, in its order. One without a witness does no DMA that anybody could count, and is left
   * running: a device of this machine's kernel that no guest drives.
   */
  static async all({ machine, witnesses }: BenchMachine): Promise<BenchDevice[]> {
    const devices: BenchDevice[] = [];
    for (const device of machine.devices) {
      const witness = witnesses.get(device.id) ?? null;
      const canStop = witness !== null && (await device.vfio.migration()).stopCopy;
      devices.push(new BenchDevice(device, witness, canStop));
    }
    return devices;
  }

  /** It does no DMA: what it has written is exact, and any log can be read. */
  get quiesced(): boolean {
    return !this.#running;
  }

  async stop(): Promise<void> {
    if (this.#running) await this.#become("STOP", false);
  }

  async run(): Promise<void> {
    if (!this.#running) await this.#become("RUNNING", true);
  }

  async #become(state: MigState, running: boolean): Promise<void> {
    if (!this.#canStop) return;
    await this.attached.vfio.setState(state);
    this.#running = running;
  }

  /** Lets it run until it has written so many pages since a mark, or for {@link WRITE_LIMIT_MS}, and stops it. */
  async runUntil(mark: DmaMark, pages: number, signal: AbortSignal | undefined): Promise<void> {
    await this.run();
    const until = performance.now() + WRITE_LIMIT_MS;
    while ((await mark.pagesSince()) < pages && performance.now() < until) await pause(LOOK_MS, signal);
    await this.stop();
  }
}

/** @throws AbortError */
export function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return sleep(ms, undefined, signal === undefined ? {} : { signal });
}
