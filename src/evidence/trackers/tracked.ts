import type { AttachedDevice, Machine } from "../../host/host.js";
import { type Arrangement, arrange } from "../../tracking/arrangement.js";
import type { TrackerChoice } from "../../tracking/choice.js";
import { Collector } from "../../tracking/collector.js";
import { deviceRequests } from "../../tracking/designs.js";
import type { OwnerCounts } from "../../tracking/ledger.js";
import { partOf } from "./site.js";

/** What one read of the trackers on the bench gave. */
export interface BenchRead {
  /** Milliseconds, of all trackers together: the same way from the source of the bits to guest pages as in a migration. */
  readonly ms: number;
  /** The same by the ledger's owner. An owner whose log can't be read now is absent. */
  readonly byOwner: Readonly<Record<string, OwnerCounts>>;
}

/**
 * Devices that are attached as a choice says, whose tracking can be switched on and off. Disposing switches it off and
 * attaches them to what they were attached to.
 */
export class TrackedDevices implements AsyncDisposable {
  /** Milliseconds that it took to attach the devices as was chosen. */
  readonly attachMs: number;
  readonly #machine: Machine;
  readonly #choices: readonly TrackerChoice[];
  readonly #arrangement: Arrangement;
  #collector: Collector | null = null;

  private constructor(machine: Machine, choices: readonly TrackerChoice[], arrangement: Arrangement, attachMs: number) {
    this.#machine = machine;
    this.#choices = choices;
    this.#arrangement = arrangement;
    this.attachMs = attachMs;
  }

  /** @throws UapiError; then all is as before */
  static async open(
    machine: Machine,
    devices: readonly AttachedDevice[],
    choices: readonly TrackerChoice[],
  ): Promise<TrackedDevices> {
    const part = partOf(machine, devices);
    const from = performance.now();
    const arrangement = await arrange(part, choices);
    return new TrackedDevices(part, choices, arrangement, performance.now() - from);
  }

  /** Domains that were made for it: page tables that somebody has to keep, and to read. */
  get domains(): Arrangement["domains"] {
    return this.#arrangement.domains;
  }

  /** Switches tracking on; milliseconds. */
  async start(): Promise<number> {
    const { domains } = this.#arrangement;
    const collector = new Collector(this.#machine.memory, deviceRequests(this.#machine, this.#choices, domains));
    const from = performance.now();
    await collector.start();
    this.#collector = collector;
    return performance.now() - from;
  }

  /** @throws what the tracker throws: on the bench a read that fails is no read of everything */
  async read({ quiesced }: { quiesced: boolean }): Promise<BenchRead> {
    const { byOwner, failures } = await this.#running.read({ quiesced });
    if (failures.length > 0) throw failures[0].error;
    return { ms: Object.values(byOwner).reduce((sum, { readMs }) => sum + readMs, 0), byOwner };
  }

  /** Bytes per bit, as found when it was read last; null: it has none. */
  granuleOf(owner: string): number | null {
    return this.#running.granuleOf(owner);
  }

  /** Switches tracking off; milliseconds. */
  async stop(): Promise<number> {
    const collector = this.#running;
    this.#collector = null;
    const from = performance.now();
    await collector[Symbol.asyncDispose]();
    return performance.now() - from;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      if (this.#collector !== null) await this.stop();
    } finally {
      await this.#arrangement[Symbol.asyncDispose]();
    }
  }

  get #running(): Collector {
    if (this.#collector === null) throw new Error("tracking on the bench is off");
    return this.#collector;
  }
}
