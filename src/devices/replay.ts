import { UsageError } from "../errors.js";
import type { DeviceDescription } from "../host/description.js";
import type { ShapeFacts } from "../host/shape.js";
import { checksumWords } from "./checksum.js";
import type { ModelInfo } from "./model.js";
import { FIRST_MODEL_TAG, type ModelWiring, PciModel, pciRegions } from "./pci-model.js";
import { badState, type StateRecord } from "./records.js";
import { ReplayOrder, ReplayTimes } from "./replay-order.js";
import { PAYLOAD_BYTES, STAMP_BYTES } from "./stamp.js";

type ReplayDescription = Extract<DeviceDescription, { model: "replay" }>;

const TRACE_TAG = FIRST_MODEL_TAG;
const IDLE_MS = 1;
const UNITS_PER_LOOK = 8;
/** How far it may fall behind its trace and catch up: as other devices' pacing has it. */
const BURST_US = 20_000;
/** Megabytes per second that nothing here reaches: its trace paces it. */
const UNPACED = 100_000;

/** @param memoryBytes behind BAR 2; 0: none */
export function replayInfo({ dmaLogging }: ReplayDescription, memoryBytes: number): ModelInfo {
  return {
    model: "replay",
    stateVersion: 1,
    mdev: false,
    regions: pciRegions(memoryBytes),
    irqs: [{ index: 2, name: "msix", count: 1 }],
    migration: { stopCopy: true, p2p: true, preCopy: false },
    tracking: { tracksInternally: true, tracksThroughContainer: false },
    dmaLogging: {
      pageSizes: [...new Set(dmaLogging.pageSizes)].sort((a, b) => a - b),
      maxRanges: dmaLogging.maxRanges,
      addressWidth: dmaLogging.addressWidth,
      readableWhen: dmaLogging.readableWhen,
    },
    separatesP2p: true,
  };
}

/**
 * A device that writes the pages of a trace, each in the interval in which the trace has it, over and over. What it writes
 * is stamped like any device's. It has a log of its own and sits behind a system IOMMU, so that either can be tried on it.
 */
export class Replay extends PciModel {
  readonly #times: ReplayTimes;
  readonly #order: ReplayOrder;
  /** Tells traces apart: number of writes, and a checksum of their pages. */
  readonly #identity: Uint8Array;
  /** Since the trace's beginning, all runs through it; undefined: to be taken from how far the writing came. */
  #us: number | undefined;
  #lookedAt = 0n;
  #pattern = 1;

  /** @throws UsageError `NO_TRACE` where the host was given no trace for it */
  constructor(description: ReplayDescription, wiring: ModelWiring) {
    const { id } = description;
    const { replay } = wiring;
    if (replay === undefined) {
      throw new UsageError(`'${id}' has no trace to replay here`, {
        code: "NO_TRACE",
        remedy: "give the machine its traces (replays)",
      });
    }
    const order = new ReplayOrder(replay);
    super(
      replayInfo(description, wiring.memory?.byteLength ?? 0),
      { vendor: 0x1af4, device: 0x10f0, classCode: 0x088000 },
      wiring,
      { id, rate: UNPACED, order },
    );
    this.#order = order;
    this.#times = new ReplayTimes(replay);
    this.#identity = new Uint8Array(
      Int32Array.of(replay.pages.length, checksumWords(new Int32Array(replay.pages.buffer), replay.pages.length))
        .buffer,
    );
  }

  protected override work(budgetMs: number): number {
    const { dma } = this;
    if (this.#order.writes === 0) return IDLE_MS;
    dma.beginSlice();
    const due = this.#times.dueAfter(this.#advance());
    const until = performance.now() + budgetMs;
    for (let units = 1; dma.lastSequence < due; units++) {
      this.#render();
      if (!dma.write(PAYLOAD_BYTES)) return IDLE_MS;
      if (units % UNITS_PER_LOOK === 0 && performance.now() > until) return 0;
    }
    return IDLE_MS;
  }

  /** Which trace it replays: the writes of another one would not be its own. */
  facts(): ShapeFacts {
    const [pages, checksum] = new Uint32Array(this.#identity.buffer);
    return { "number of writes": pages, "trace checksum": `0x${checksum.toString(16)}` };
  }

  override quiesce(): void {
    super.quiesce();
    this.#us = undefined;
  }

  protected override ownRecords(): StateRecord[] {
    return [{ tag: TRACE_TAG, optional: false, data: this.#identity }];
  }

  protected override loadOwn(take: (tag: number, bytes: number) => Uint8Array): void {
    if (Buffer.compare(take(TRACE_TAG, this.#identity.length), this.#identity) !== 0) {
      throw badState("it is of a device that replays another trace");
    }
    this.#us = undefined;
  }

  /** The time in the trace, which passes only while the device runs and keeps up. */
  #advance(): number {
    const now = this.context.now();
    const written = this.#times.timeOf(this.dma.lastSequence);
    const passed = this.#us === undefined ? 0 : Number(now - this.#lookedAt) / 1000;
    this.#lookedAt = now;
    this.#us = Math.min((this.#us ?? written) + passed, this.#mostUs(written));
    return this.#us;
  }

  /** Where there is nothing to write for a while, the time goes on all the same. */
  #mostUs(written: number): number {
    const next = this.#times.timeOf(this.dma.lastSequence + 1);
    return Math.max(written, next) + BURST_US;
  }

  /** Makes up a payload: cheap, and different in every unit. */
  #render(): void {
    const words = new Int32Array(this.dma.staging.buffer, STAMP_BYTES);
    for (let i = 0; i < words.length; i += 16) {
      this.#pattern = (Math.imul(this.#pattern, 1664525) + 1013904223) | 0;
      words[i] = this.#pattern;
    }
  }
}
