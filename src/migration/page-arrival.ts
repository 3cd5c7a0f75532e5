import { DirtmapError } from "../errors.js";
import {
  type MachineDescription,
  type NamedFiles,
  type PassthroughDescription,
  withoutPaths,
} from "../host/description.js";
import type { Machine } from "../host/host.js";
import { type MachineShape, machineShape } from "../host/shape.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import type { PageReceiver } from "./data-plane.js";
import { type Timeouts, within } from "./deadline.js";
import type { MemoryArrival, MemoryDestination } from "./memory-mover.js";
import { RoundSequence, unexpected } from "./rounds.js";
import type { ControlMessageOf, MoverAnswer, MoverOffer } from "./stream/messages.js";
import { digestMessages, rootDigest } from "./verification.js";

/** How a machine that Dirtmap moves itself is built. */
export interface BuildOptions {
  /**
   * Builds the emulated machine that is described, with its vCPUs paused and its devices doing nothing. Absent: such
   * machines are refused.
   * @param description without paths: what the source names is not for a destination to open
   * @param named the files that the source has, by device, for a destination that knows them as well
   * @throws DirtmapError why it can't be built here: the source is refused with it
   */
  readonly createMachine?: (description: MachineDescription, named: NamedFiles) => Promise<Machine>;
  /** The same for a machine of passed-through devices. Absent: such machines are refused. */
  readonly createPassthroughMachine?: (description: PassthroughDescription) => Promise<Machine>;
}

/** Where pages come in. */
export interface PageDoor {
  /** Takes the page channels of this source from now on; they must show the token. */
  openReceiver(args: { memory: GuestMemory; channels: number }): Promise<{ receiver: PageReceiver; token: string }>;
}

/** The destination's side of Dirtmap's own mover. */
export class PageDestination implements MemoryDestination<Machine, "dirtmap"> {
  readonly kind = "dirtmap";
  readonly #options: BuildOptions;
  readonly #door: PageDoor;
  readonly #timeouts: Timeouts;
  readonly #signal: AbortSignal;

  constructor(options: BuildOptions, door: PageDoor, context: { timeouts: Timeouts; signal: AbortSignal }) {
    this.#options = options;
    this.#door = door;
    this.#timeouts = context.timeouts;
    this.#signal = context.signal;
  }

  async build({ machine }: MoverOffer<"dirtmap">): Promise<Machine> {
    const { createMachine, createPassthroughMachine } = this.#options;
    const passthrough = "kind" in machine;
    if (passthrough && createPassthroughMachine !== undefined) return createPassthroughMachine(machine);
    if (!passthrough && createMachine !== undefined) {
      const { description: bare, named } = withoutPaths(machine);
      return createMachine(bare, named);
    }
    throw new DirtmapError(`no machines of ${passthrough ? "passed-through" : "emulated"} devices are taken here`, {
      code: "INCOMPATIBLE",
      remedy: "migrate to a destination on a host of the same kind",
    });
  }

  async shape(machine: Machine): Promise<MachineShape> {
    return await machineShape(machine);
  }

  async open(
    machine: Machine,
    { channels, verify }: MoverOffer<"dirtmap">,
  ): Promise<{ answer: MoverAnswer<"dirtmap">; arrival: MemoryArrival }> {
    const { receiver, token } = await this.#door.openReceiver({ memory: machine.memory, channels });
    const arrival = new PageArrival(machine, receiver, verify, { timeouts: this.#timeouts, signal: this.#signal });
    return { answer: { kind: "dirtmap", token }, arrival };
  }
}

/** Memory that comes in by rounds of pages. */
class PageArrival implements MemoryArrival {
  readonly failed: Promise<never>;
  readonly comparison: MemoryArrival["comparison"];
  readonly #machine: Machine;
  readonly #receiver: PageReceiver;
  readonly #timeouts: Timeouts;
  readonly #signal: AbortSignal;
  readonly #rounds = new RoundSequence();

  constructor(
    machine: Machine,
    receiver: PageReceiver,
    when: "before" | "after",
    { timeouts, signal }: { timeouts: Timeouts; signal: AbortSignal },
  ) {
    this.#machine = machine;
    this.#receiver = receiver;
    this.#timeouts = timeouts;
    this.failed = receiver.failed;
    const broken = new AbortController();
    receiver.failed.catch((error: unknown) => broken.abort(error));
    this.#signal = AbortSignal.any([signal, broken.signal]);
    this.comparison = { when, messages: () => digestMessages(receiver.digests()) };
  }

  readonly takeRound = async (message: ControlMessageOf<"ROUND_BEGIN" | "ROUND_END">): Promise<void> => {
    const { peerMs } = this.#timeouts;
    if (message.type === "ROUND_BEGIN") {
      this.#rounds.begin(message);
      const beginning = this.#receiver.beginRound(message.round);
      await within(peerMs, "the channels in a round", beginning, this.#signal);
    } else {
      this.#rounds.end(message);
      const { round, pages, zeroPages, bytes } = message;
      const ending = this.#receiver.endRound(round, { pages, zeroPages, bytes });
      await within(peerMs, "the channels' counts of a round", ending, this.#signal);
    }
  };

  async arrived(round: number | undefined): Promise<void> {
    if (round === undefined) throw unexpected("PREPARE names no round");
    this.#rounds.finish(round);
    await within(this.#timeouts.peerMs, "the channels at rest", this.#receiver.seal(), this.#signal);
  }

  async load(state: Uint8Array, devicesLoaded: Promise<void>): Promise<string> {
    const { vcpus } = this.#machine;
    const loading = within(
      this.#timeouts.deviceMs,
      "the vCPUs with their state loaded",
      vcpus.loadState(state),
      this.#signal,
    );
    // Hashed here while device threads load. All pages have come and no more may, so the table is complete.
    const root = rootDigest(this.#receiver.digests());
    await Promise.all([devicesLoaded, loading]);
    return root;
  }

  [Symbol.asyncDispose](): PromiseLike<void> {
    return this.#receiver[Symbol.asyncDispose]();
  }
}
