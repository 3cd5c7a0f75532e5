import type { DmaLoggingLimits, IrqInfo, MigrationSupport, RegionInfo, TrackingFlags } from "../host/host.js";
import type { ShapeFacts } from "../host/shape.js";
import type { PageNumber } from "../memory/address.js";
import type { StampTrail } from "./stamp.js";

/*
 * What a device model is, whoever hosts it: the emulated host's device threads, or a vfio-user server. A model runs on
 * one thread; its methods are synchronous and never nested.
 */

/** Why a DMA did not happen. The access is blocked and logged by the IOMMU, as hardware would; nothing is thrown. */
export type DmaFault = "not-mapped" | "not-writeable" | "not-readable" | "p2p-refused" | "detached" | "not-pinned";

/**
 * A device's way to memory. Addresses are IOVA pages (numbers) and byte offsets in them; no call crosses a page
 * boundary, so that a call is atomic to dirty tracking and to quiescing. Every method returns null, or the fault.
 */
export interface DmaPort {
  /** Writes source[from, from + bytes) at `offset` of a page; offset + bytes is at most 4096. */
  write(page: PageNumber, offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null;
  read(page: PageNumber, offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null;
  /** Returns when all that was written is in memory. Absent: it always is. See {@link DeviceModel.postsWrites}. */
  settle?(): DmaFault | null;
}

/** What hosts a model. */
export interface DeviceContext {
  readonly dma: DmaPort;
  /** True while peer-to-peer DMA must not be started (RUNNING_P2P, PRE_COPY_P2P). */
  readonly p2pQuiesced: boolean;
  raiseIrq(index: number, vector: number): void;
  /** CLOCK_MONOTONIC in nanoseconds, for stamps; the same in all processes of a machine. */
  now(): bigint;
  /** For models whose mdev hardware must have a page pinned before it touches it; resolves to the fault, or null. */
  pin(page: PageNumber, pages: number): Promise<DmaFault | null>;
  unpin(page: PageNumber, pages: number): Promise<void>;
  /** The model can't go on. Until it is reset, by its guest or its host, its migration state becomes ERROR. */
  fail(reason: string): void;
}

/** What a model says of itself; constant over its life. */
export interface ModelInfo {
  readonly model: string;
  /** Raised when the state record's layout changes; a destination refuses what it doesn't know. */
  readonly stateVersion: number;
  readonly mdev: boolean;
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  /** null: can't migrate. */
  readonly migration: MigrationSupport | null;
  readonly tracking: TrackingFlags;
  readonly dmaLogging: DmaLoggingLimits | null;
  /** True: it knows which of its DMA is P2P and stops only that in P2P states; false: it stops all DMA there. */
  readonly separatesP2p: boolean;
}

/** Memory of a device that its user may map instead of reading and writing it by calls. */
export interface MappableRegion {
  readonly region: number;
  /** A file that holds the region's bytes, open while the model lives, and of a size that nobody can change. */
  readonly fd: number;
  /** Where in the file the region begins. */
  readonly offset: number;
  /** The parts that may be mapped, in bytes from the region's start, page-aligned; null: all of it. */
  readonly areas: readonly { readonly offset: number; readonly bytes: number }[] | null;
}

/** A device model. */
export interface DeviceModel extends Disposable {
  readonly info: ModelInfo;
  /**
   * True: its regions may be read and written inside one of its calls of DmaPort, as an exception to "never nested". A
   * host that does DMA by asking its client needs it, where the client waits for a register and serves no DMA meanwhile.
   */
  readonly registersDuringDma?: boolean;
  /**
   * True: its writes may be posted, as PCI's are. They reach memory in order, and no later than its next interrupt, its next read
   * of the same page, or the end of its slice of work; what its guest could see in its registers before that it shows only after
   * {@link DmaPort.settle}. A host that does DMA by asking its client then waits once, and not for each write.
   */
  readonly postsWrites?: boolean;
  /** Absent: none. */
  readonly mappable?: readonly MappableRegion[];
  /**
   * The guest's driver lets it do DMA: Bus Master Enable in the command register of its configuration space. While it is
   * false, {@link run} is not called.
   */
  readonly busMaster: boolean;
  /**
   * It has failed: shows that to its guest, in the way that its programming interface has, and does no work until it is
   * reset. A reset that its guest asked for meanwhile takes effect. Absent, as `hasFailed` is then: its guest can't see it,
   * and only its host resets it.
   */
  showFailure?(): void;
  /** Since {@link showFailure}, until it is reset. A device may show the same for a reason that is no failure of the model. */
  readonly hasFailed?: boolean;
  /** Opens what it needs (sockets, files); called once, before anything else. */
  start(context: DeviceContext): Promise<void>;
  /**
   * Does a slice of work, at most `budgetMs`, and returns how many milliseconds may pass before the next slice (0: has
   * more to do now). Called only in states in which the device may do DMA.
   */
  run(budgetMs: number): number;
  /** The device is leaving the running states: ends what is in flight. After it, no DMA until `run` is called again. */
  quiesce(): void;
  /** Back to the state after power-on. */
  reset(): void;
  /** The whole internal state. In STOP and STOP_COPY it is final; in PRE_COPY it is a snapshot. */
  save(): Uint8Array;
  /** @throws DirtmapError `BAD_DEVICE_STATE` for data that is incomplete, inconsistent or of an unknown version */
  load(state: Uint8Array): void;
  regionRead(region: number, offset: number, target: Uint8Array): void;
  regionWrite(region: number, offset: number, source: Uint8Array): void;
  /**
   * What its guest can tell it by besides its regions, interrupts and configuration space; constant once it is started.
   * Absent: nothing. What moves with its state does not belong here.
   */
  facts?(): ShapeFacts;
  /** Counters for reports: DMA writes, bytes, datagrams, sequence numbers … */
  counters(): Record<string, number>;
  /** Of a model whose DMA is stamped: what its stamps in guest memory must be, once it has stopped. */
  trail?(): StampTrail;
}
