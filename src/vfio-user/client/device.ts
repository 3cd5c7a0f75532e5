import { clearTail } from "../../bitmap/bits.js";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { PageSpan } from "../../devices/buffers.js";
import { BUFFER_ENTRY_BYTES, PCI_COMMAND, PCI_COMMAND_MASTER, REGION, REGISTER } from "../../devices/pci-model.js";
import type { StampTrail } from "../../devices/stamp.js";
import { DirtmapError } from "../../errors.js";
import type {
  BitmapQuery,
  DataStream,
  DmaLoggingLimits,
  HandoverNotice,
  Iommufd,
  IrqInfo,
  MigrationSupport,
  ObjectId,
  RegionInfo,
  TrackingFlags,
  VfioDevice,
} from "../../host/host.js";
import { type DeviceShape, shapeOf } from "../../host/shape.js";
import { hex, type Iova, iovaOf, isPowerOfTwo, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import { Lock } from "../../threads/lock.js";
import { type ErrnoName, isErrno, UapiError } from "../../uapi/errno.js";
import {
  type DeviceFeature,
  type MigState,
  SAVING_GROUP,
  VFIO_DEVICE_STATE,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
  vfio_irq_set,
} from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  DIRTMAP_HANDOVER,
  dirtmap_handover,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_USER_COMMAND,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import type { DmaMode } from "../server/client-memory.js";
import { Connection } from "./connection.js";
import { readCounters, type ServerCounters } from "./counters.js";
import { type SessionOptions, VfioUserResumingStream, VfioUserSavingStream } from "./data-stream.js";
import { type DeviceInfo, readDeviceInfo } from "./device-info.js";
import { DmaMappings } from "./dma-mappings.js";
import { getFeature, probeFeature, setFeature } from "./feature.js";
import { VfioUserIommufd } from "./iommufd.js";
import { WrittenPages } from "./written-pages.js";

const SET_STATE = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";
const SEE_ARCS = "see the arcs of enum vfio_device_mig_state, and the server's log";
/** What Dirtmap's server means by an errno, by which it refuses an arc that there is. */
const STATE_REMEDIES: Readonly<Partial<Record<string, string>>> = {
  EBUSY: "wait for the migration that another connection does, or end it: `dirtmap device status` names it",
  EPERM: "reset the device: a migration has handed it over",
};
const START = "VFIO_DEVICE_FEATURE_DMA_LOGGING_START";
const REPORT = "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT";

/** Ranges that fit in a page: LOG_MAX_RANGES of the kernel. */
const MAX_LOGGED_RANGES = PAGE_SIZE / vfio_device_feature_dma_logging_range.size;

/** Bytes of bitmap in one answer: 32 GiB at 4 KiB. A longer range is asked for in pieces. */
const REPORT_BYTES = 2 ** 20;

/** A device at a server's socket, and how it is used. */
export interface VfioUserDeviceOptions {
  /** Of the server's socket. */
  readonly path: string;
  readonly id: string;
  /** auto: memory is sent with its descriptor where it has one; messages: never, so that we see every write. Default: auto. */
  readonly dma?: DmaMode;
  /**
   * The socket is a control connection's: the device is another client's, and is left as it is. It can be asked, tracked and
   * migrated, not attached or used. Default: false.
   */
  readonly control?: boolean;
  /** Milliseconds that the server may take to answer; default 10 s. */
  readonly limitMs?: number;
  /** Throws where it is not the device that is meant: it is left as it is then. `server`: what Dirtmap's own server tells. */
  readonly check?: (server: ServerCounters | null) => void;
  /** Called once the device is closed. */
  readonly onClose?: () => void;
}

/**
 * A device behind a vfio-user socket.
 *
 * What holds: the server keeps the device's state, and this object what lives as long as its connection: the stream of the
 * session that is under way, and what is mapped. State changes, resets and log switches happen one at a time. Opening
 * resets the device, as vfio-pci does: what its last client left must not write into our memory.
 */
export class VfioUserDevice implements VfioDevice {
  readonly id: string;
  readonly model: string;
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  /** What the device can reach of our memory. */
  readonly mappings: DmaMappings;
  readonly #connection: Connection;
  readonly #counters: ServerCounters | null;
  readonly #resets: boolean;
  readonly #control: boolean;
  readonly #onClose: (() => void) | undefined;
  readonly #lock = new Lock();
  #bound: { readonly iommufd: VfioUserIommufd; readonly id: ObjectId } | null = null;
  #stream: VfioUserSavingStream | VfioUserResumingStream | null = null;
  #precopyInfoV2 = false;
  #closing: Promise<void> | undefined;

  private constructor(
    { id, dma = "auto", control = false, onClose }: VfioUserDeviceOptions,
    connection: Connection,
    { info, counters }: { info: DeviceInfo; counters: ServerCounters | null },
  ) {
    this.id = id;
    this.model = counters?.model ?? "vfio-user";
    this.regions = info.regions;
    this.irqs = info.irqs;
    this.mappings = new DmaMappings(id, connection, dma);
    this.#resets = info.resets;
    this.#connection = connection;
    this.#counters = counters;
    this.#control = control;
    this.#onClose = onClose;
  }

  /** @throws UapiError ENOENT or ECONNREFUSED where nobody listens; ECONNRESET where the server has another client … */
  static async open(options: VfioUserDeviceOptions): Promise<VfioUserDevice> {
    const connection = await Connection.open(options.path, options);
    try {
      const counters = await readCounters(connection);
      options.check?.(counters);
      const info = await readDeviceInfo(connection);
      const device = new VfioUserDevice(options, connection, { info, counters });
      if (options.control !== true) await device.#begin();
      return device;
    } catch (error) {
      connection[Symbol.dispose]();
      throw error;
    }
  }

  /** Of another's server without what its model alone knows: the protocol has no message for it. */
  async shape(): Promise<DeviceShape> {
    this.#checkOpen("VFIO_USER_REGION_READ", () => `ask what '${this.id}' is`);
    const { stateVersion = null, facts = {} } = (await this.serverCounters())?.shape ?? {};
    return shapeOf(this, { stateVersion, facts });
  }

  async bind(iommufd: Iommufd): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: `bind '${this.id}'` };
    this.#checkOpen(call.syscall, () => call.attempted);
    if (this.#bound !== null) throw new UapiError("EINVAL", { ...call, remedy: "it is bound already" });
    if (!(iommufd instanceof VfioUserIommufd)) {
      throw new UapiError("EINVAL", { ...call, remedy: "give an iommufd of the same host" });
    }
    const id = iommufd.bindDevice(this.mappings);
    this.#bound = { iommufd, id };
    return id;
  }

  async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_ATTACH_IOMMUFD_PT", attempted: `attach '${this.id}' to ${ioasOrHwpt}` };
    const { iommufd, id } = this.#binding(call.syscall, call.attempted);
    if (this.#control) throw new UapiError("EPERM", { ...call, remedy: "use its own socket: this one is for control" });
    return iommufd.attachDevice(id, ioasOrHwpt);
  }

  async detach(): Promise<void> {
    const { iommufd, id } = this.#binding("VFIO_DEVICE_DETACH_IOMMUFD_PT", `detach '${this.id}'`);
    await iommufd.detachDevice(id);
  }

  async reset(): Promise<void> {
    this.#checkOpen("VFIO_DEVICE_RESET", () => `reset '${this.id}'`);
    await this.#lock.run(async () => {
      this.#endStream("the device was reset");
      await this.#reset();
    });
  }

  async supports(feature: DeviceFeature): Promise<boolean> {
    this.#checkOpen(`VFIO_DEVICE_FEATURE_${feature}`, () => `ask '${this.id}' for ${feature}`);
    return probeFeature(this.#connection, feature);
  }

  async migration(): Promise<MigrationSupport> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIGRATION", () => `ask '${this.id}' how it migrates`);
    const { size } = vfio_device_feature_migration;
    const { flags } = vfio_device_feature_migration.decode(await getFeature(this.#connection, "MIGRATION", size));
    const has = (flag: number) => (flags & BigInt(flag)) !== 0n;
    return {
      stopCopy: has(VFIO_MIGRATION_STOP_COPY),
      p2p: has(VFIO_MIGRATION_P2P),
      preCopy: has(VFIO_MIGRATION_PRE_COPY),
    };
  }

  async trackingFlags(): Promise<TrackingFlags> {
    return { tracksInternally: await this.supports("DMA_LOGGING_START"), tracksThroughContainer: false };
  }

  /** Of Dirtmap's own server; the protocol has no message for it. */
  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return this.#counters?.dmaLogging ?? null;
  }

  async state(): Promise<MigState> {
    this.#checkOpen(SET_STATE, () => `ask for the state of '${this.id}'`);
    return this.#state();
  }

  async setState(next: MigState): Promise<DataStream | null> {
    this.#checkOpen(SET_STATE, () => `move '${this.id}' to ${next}`);
    return this.#lock.run(async () => {
      const from = await this.#state();
      try {
        await this.#setState(next);
      } catch (error) {
        throw await this.#stateError(error, next);
      }
      if (this.#stream?.direction === "saving") this.#stream.final = next === "STOP_COPY";
      if (from === next || (SAVING_GROUP.has(from) && SAVING_GROUP.has(next))) return null;
      this.#endStream(`the device went to ${next}`);
      if (next === "RESUMING") this.#stream = new VfioUserResumingStream(this.#session());
      else if (SAVING_GROUP.has(next)) {
        this.#stream = new VfioUserSavingStream(this.#session());
        this.#stream.final = next === "STOP_COPY";
      }
      return this.#stream;
    });
  }

  /** 0 where the server can't say; libvfio-user's can't. */
  async dataSize(): Promise<number> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE", () => `ask how large the state of '${this.id}' is`);
    const layout = vfio_device_feature_mig_data_size;
    if (this.#counters === null && !(await probeFeature(this.#connection, "MIG_DATA_SIZE"))) return 0;
    const { stop_copy_length } = layout.decode(await getFeature(this.#connection, "MIG_DATA_SIZE", layout.size));
    if (stop_copy_length <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(stop_copy_length);
    throw new UapiError("EPROTO", {
      syscall: "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
      attempted: `ask how large the state of '${this.id}' is: it is ${stop_copy_length} bytes`,
      remedy: "mend the server: no device has that much",
    });
  }

  async enablePrecopyInfoV2(): Promise<void> {
    const attempted = `opt in on '${this.id}'`;
    const syscall = "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2";
    this.#checkOpen(syscall, () => attempted);
    try {
      await setFeature(this.#connection, "MIG_PRECOPY_INFOv2");
    } catch (error) {
      // As the kernel answers of a driver without pre-copy.
      if (isErrno(error, "ENOTTY")) throw new UapiError("EINVAL", { syscall, attempted, cause: error });
      throw error;
    }
    this.#precopyInfoV2 = true;
  }

  async startDmaLogging({
    pageSize,
    ranges,
  }: {
    pageSize: number;
    ranges: readonly { iova: Iova; length: bigint }[];
  }): Promise<number> {
    const attempted = () => `log ${ranges.length} ranges of '${this.id}' by ${pageSize} bytes`;
    this.#checkOpen(START, attempted);
    const refuse = (code: ErrnoName, remedy: string) =>
      new UapiError(code, { syscall: START, attempted: attempted(), remedy });
    if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize)) throw refuse("EINVAL", "give a power of two");
    // To the protocol this means everything; to those who call us, that they forgot something.
    if (ranges.length === 0) throw refuse("EINVAL", "give at least one range");
    if (ranges.length > MAX_LOGGED_RANGES) {
      throw refuse("E2BIG", `give at most ${MAX_LOGGED_RANGES} ranges: merge them, outwards`);
    }
    if (ranges.some(beyond64Bits)) throw refuse("EOVERFLOW", "end ranges below 2^64");
    return this.#lock.run(async () => {
      const { size: head } = vfio_user_dma_logging_control;
      const before = this.mappings.written;
      const { size: each } = vfio_device_feature_dma_logging_range;
      const request = new Uint8Array(head + ranges.length * each);
      vfio_user_dma_logging_control.encode({ page_size: BigInt(pageSize), num_ranges: ranges.length }, request);
      ranges.forEach((range, index) => {
        vfio_device_feature_dma_logging_range.encode(range, request, head + index * each);
      });
      // From before the server begins: what it writes by messages as soon as it has is not to be missed.
      this.mappings.written = new WrittenPages();
      const answer = await setFeature(this.#connection, "DMA_LOGGING_START", request).catch((error: unknown) => {
        this.mappings.written = before;
        throw error;
      });
      const chosen = vfio_user_dma_logging_control.decode(answer).page_size;
      if (isPowerOfTwo(chosen) && chosen <= 1n << 40n) return Number(chosen);
      await this.#stopLog();
      throw refuse("EPROTO", `the server chose a page size of ${hex(chosen)}, which is none`);
    });
  }

  async reportDmaLogging({ iova, length, pageSize, into }: BitmapQuery): Promise<void> {
    const attempted = () => `read the log of ${hex(length)} bytes at ${hex(iova)} of '${this.id}' by ${pageSize}`;
    this.#checkOpen(REPORT, attempted);
    const refuse = (code: ErrnoName, remedy: string) =>
      new UapiError(code, { syscall: REPORT, attempted: attempted(), remedy });
    if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize) || pageSize < PAGE_SIZE) {
      throw refuse("EINVAL", `give a power of two from ${PAGE_SIZE} on as page size`);
    }
    if (beyond64Bits({ iova, length })) throw refuse("EOVERFLOW", "end the range below 2^64");
    if (into.granule !== pageSize || into.iova > iova || into.iova + into.length < iova + length) {
      throw refuse("EINVAL", "give a bitmap of that range and page size");
    }
    const piece = BigInt(REPORT_BYTES * 8) * BigInt(pageSize);
    for (let done = 0n; done < length; done += piece) {
      const rest = length - done;
      await this.#report({ iova: iova + done, length: rest < piece ? rest : piece, pageSize, into });
    }
    if (length > 0n) this.mappings.written?.read(iova, iova + length - 1n, { into, clear: true });
  }

  async stopDmaLogging(): Promise<void> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", () => `stop the log of '${this.id}'`);
    await this.#lock.run(() => this.#stopLog());
  }

  /** DIRTMAP_COMMAND.HANDOVER; nothing of another server, which leaves its device alone in any case. */
  async announceHandover(notice: HandoverNotice, migration: string): Promise<void> {
    this.#checkOpen("handover", () => `announce that '${this.id}' is ${notice}`);
    if (this.#counters === null) return;
    const id = new TextEncoder().encode(migration);
    const request = new Uint8Array(dirtmap_handover.size + id.byteLength);
    dirtmap_handover.encode({ argsz: request.byteLength, notice: DIRTMAP_HANDOVER[notice] }, request);
    request.set(id, dirtmap_handover.size);
    await this.#connection.call(DIRTMAP_COMMAND.HANDOVER, "handover", request);
  }

  /** VFIO_USER_REGION_READ, in as many messages as it takes. @throws UapiError EINVAL outside of the region */
  async regionRead(region: number, offset: number, bytes: number): Promise<Uint8Array> {
    const syscall = "VFIO_USER_REGION_READ";
    this.#checkRegion(syscall, region, offset, bytes);
    const data = new Uint8Array(bytes);
    const { maxTransfer } = this.#connection.agreement;
    for (let done = 0; done < bytes; done += maxTransfer) {
      const count = Math.min(maxTransfer, bytes - done);
      const request = vfio_user_region_access.encode({ offset: BigInt(offset + done), region, count });
      const answer = await this.#connection.call(VFIO_USER_COMMAND.REGION_READ, syscall, request);
      data.set(answer.subarray(request.byteLength), done);
    }
    return data;
  }

  /** VFIO_USER_REGION_WRITE, in as many messages as it takes. @throws UapiError EINVAL outside of the region */
  async regionWrite(region: number, offset: number, data: Uint8Array): Promise<void> {
    const syscall = "VFIO_USER_REGION_WRITE";
    this.#checkRegion(syscall, region, offset, data.byteLength);
    const { maxTransfer } = this.#connection.agreement;
    for (let done = 0; done < data.byteLength; done += maxTransfer) {
      const part = data.subarray(done, done + maxTransfer);
      const request = new Uint8Array(vfio_user_region_access.size + part.byteLength);
      vfio_user_region_access.encode({ offset: BigInt(offset + done), region, count: part.byteLength }, request);
      request.set(part, vfio_user_region_access.size);
      await this.#connection.call(VFIO_USER_COMMAND.REGION_WRITE, syscall, request);
    }
  }

  /**
   * VFIO_USER_DEVICE_SET_IRQS: eventfds that interrupts `start` and following of a type signal; none: the type's are taken
   * away. They must stay open until it resolves.
   */
  async setIrqEventFds(index: number, start: number, fds: readonly number[]): Promise<void> {
    const syscall = "VFIO_USER_DEVICE_SET_IRQS";
    this.#checkOpen(syscall, () => `set interrupts of '${this.id}'`);
    const { maxFds } = this.#connection.agreement;
    const set = async (flags: number, from: number, some: readonly number[]) => {
      const request = vfio_irq_set.encode({ argsz: vfio_irq_set.size, flags, index, start: from, count: some.length });
      await this.#connection.call(VFIO_USER_COMMAND.DEVICE_SET_IRQS, syscall, request, some);
    };
    if (fds.length === 0) return set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, []);
    if (maxFds === 0) {
      throw new UapiError("EOPNOTSUPP", { syscall, attempted: "send an eventfd", remedy: "the server takes none" });
    }
    for (let done = 0; done < fds.length; done += maxFds) {
      const some = fds.slice(done, done + maxFds);
      await set(VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, start + done, some);
    }
  }

  /** What Dirtmap's own server tells of the device now; null of another server. */
  async serverCounters(): Promise<ServerCounters | null> {
    this.#checkOpen("counters", () => `ask '${this.id}' for its counters`);
    return this.#counters === null ? null : readCounters(this.#connection);
  }

  /** What the device itself has counted; nothing of another server's. */
  async counters(): Promise<Record<string, number>> {
    return (await this.serverCounters())?.device ?? {};
  }

  /** What its stamps in memory must be, once it has stopped; null of a device whose DMA is not stamped. */
  async stamps(): Promise<StampTrail | null> {
    return (await this.serverCounters())?.trail ?? null;
  }

  /** What the guest's driver does before it uses the device: lets it do DMA. Part of the state that migrates. */
  async enableBusMaster(): Promise<void> {
    const [command] = await this.regionRead(REGION.CONFIG, PCI_COMMAND, 1);
    await this.regionWrite(REGION.CONFIG, PCI_COMMAND, Uint8Array.of(command | PCI_COMMAND_MASTER));
  }

  /**
   * What the guest's driver of one of Dirtmap's models does: names the buffers that the device writes to, in its buffer
   * table. Nothing is done to another server's device, whose registers nobody here knows.
   * @throws UapiError EINVAL for more than the table has entries for
   */
  async setBuffers(buffers: readonly PageSpan[]): Promise<void> {
    if (this.#counters === null) return;
    const table = new Uint8Array(buffers.length * BUFFER_ENTRY_BYTES);
    const view = new DataView(table.buffer);
    buffers.forEach(({ firstPage, pages }, index) => {
      view.setBigUint64(index * BUFFER_ENTRY_BYTES, iovaOf(firstPage), true);
      view.setBigUint64(index * BUFFER_ENTRY_BYTES + 8, BigInt(pages) * BigInt(PAGE_SIZE), true);
    });
    await this.regionWrite(REGION.BAR0, REGISTER.BUFFER_TABLE, table);
    const count = new Uint8Array(4);
    new DataView(count.buffer).setUint32(0, buffers.length, true);
    await this.regionWrite(REGION.BAR0, REGISTER.BUFFERS, count);
    const used = await this.regionRead(REGION.BAR0, REGISTER.BUFFERS, 4);
    if (Buffer.compare(used, count) === 0) return;
    throw new UapiError("EINVAL", {
      syscall: "VFIO_USER_REGION_WRITE",
      attempted: `have '${this.id}' use ${buffers.length} buffers`,
      remedy: "see the buffer table's rules in docs/vfio-user.md",
    });
  }

  /** Closes the connection: the server lets go of our memory, and of the log. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#lock.run(() => this.#close());
    return this.#closing;
  }

  async #begin(): Promise<void> {
    if (this.#resets) return this.#reset();
    if (await probeFeature(this.#connection, "MIG_DEVICE_STATE")) await this.setState("RUNNING");
  }

  async #reset(): Promise<void> {
    await this.#connection.call(VFIO_USER_COMMAND.DEVICE_RESET, "VFIO_USER_DEVICE_RESET", null);
    // It has ended the log, of Dirtmap's server at least; another's would be started anew all the same.
    this.mappings.written = null;
    if (this.#counters !== null || !(await probeFeature(this.#connection, "MIG_DEVICE_STATE"))) return;
    // VFIO's reset ends in RUNNING. libvfio-user's leaves the state as it is, since its commit 4f4fce4.
    if ((await this.#state()) !== "RUNNING") await this.#setState("RUNNING");
  }

  async #close(): Promise<void> {
    this.#endStream("the device is closed");
    const bound = this.#bound;
    this.#bound = null;
    try {
      if (bound !== null) await bound.iommufd.unbindDevice(bound.id);
    } finally {
      this.#connection[Symbol.dispose]();
      this.#onClose?.();
    }
  }

  async #state(): Promise<MigState> {
    const { size } = vfio_device_feature_mig_state;
    const answer = await getFeature(this.#connection, "MIG_DEVICE_STATE", size);
    const { device_state } = vfio_device_feature_mig_state.decode(answer);
    const names = Object.keys(VFIO_DEVICE_STATE) as MigState[];
    const state = names.find((name) => VFIO_DEVICE_STATE[name] === device_state);
    if (state !== undefined) return state;
    throw new UapiError("EPROTO", {
      syscall: SET_STATE,
      attempted: `ask for the state of '${this.id}': it is ${device_state}`,
      remedy: "mend the server: there is no such state",
    });
  }

  async #setState(next: MigState): Promise<void> {
    const request = vfio_device_feature_mig_state.encode({ device_state: VFIO_DEVICE_STATE[next], data_fd: -1 });
    await setFeature(this.#connection, "MIG_DEVICE_STATE", request);
  }

  /** What a failed state change means: where the device is now decides what can be done. */
  async #stateError(error: unknown, next: MigState): Promise<unknown> {
    if (!(error instanceof UapiError) || error.code === "ENOTTY" || this.#connection.failure !== undefined)
      return error;
    const now = await this.#state();
    const { direction } = this.#stream ?? {};
    if (direction === "resuming" ? now !== "RESUMING" : !SAVING_GROUP.has(now))
      this.#endStream(`the device is in ${now}`);
    const known = await this.#explained(error);
    return new UapiError(error.code, {
      syscall: SET_STATE,
      attempted: `move '${this.id}' to ${next}: it is in ${now}${known === error ? "" : `: ${known.message}`}`,
      remedy: now === "ERROR" ? "reset the device" : (STATE_REMEDIES[error.code] ?? SEE_ARCS),
      cause: known,
    });
  }

  /** An errno with what Dirtmap's own server knows besides: why the device refuses. Another's has it in its log. */
  async #explained(error: UapiError): Promise<Error> {
    const problem = (await this.serverCounters().catch(() => null))?.problem ?? null;
    return problem === null ? error : new DirtmapError(problem, { code: "DEVICE_PROBLEM", cause: error });
  }

  #session(): SessionOptions {
    return {
      device: this.id,
      connection: this.#connection,
      precopyInfoV2: () => this.#precopyInfoV2,
      hasPrecopyInfo: this.#counters !== null,
      dataSize: () => this.dataSize(),
      explained: (error) => this.#explained(error),
    };
  }

  #endStream(why: string): void {
    this.#stream?.end(why);
    this.#stream = null;
  }

  async #stopLog(): Promise<void> {
    await setFeature(this.#connection, "DMA_LOGGING_STOP");
    this.mappings.written = null;
  }

  /**
   * libvfio-user reports on nothing but exactly one region: it refuses a part of one, and answers nothing where there are
   * several. Of such a server the regions that touch the range are asked for.
   */
  async #report(query: BitmapQuery): Promise<void> {
    try {
      await this.#reportRange(query);
      return;
    } catch (error) {
      const isOther = isErrno(error, "EOPNOTSUPP") || isErrno(error, "ENOENT") || isErrno(error, "EPROTO");
      if (this.#connection.failure !== undefined || !isOther) throw error;
    }
    const { iova, length, pageSize } = query;
    for (const [start, { span }] of [...this.mappings.mapped]) {
      const bytes = BigInt(span.length);
      if (start >= iova + length || start + bytes <= iova) continue;
      const whole = new DirtyBitmap({ iova: start, length: bytes, granule: pageSize });
      await this.#reportRange({ iova: start, length: bytes, pageSize, into: whole });
      // What lies outside of the range is gone from the server's log: it is kept here until it is asked for.
      whole.forEachRun((first, count) => {
        this.mappings.written?.add(start + BigInt(first) * BigInt(pageSize), count * pageSize);
      });
    }
  }

  async #reportRange({ iova, length, pageSize, into }: BitmapQuery): Promise<void> {
    const { size: head } = vfio_user_dma_logging_report;
    const bits = Number((length + BigInt(pageSize) - 1n) / BigInt(pageSize));
    const bytes = Math.ceil(bits / 64) * 8;
    const request = vfio_user_dma_logging_report.encode({ iova, length, page_size: BigInt(pageSize) });
    const answer = await getFeature(
      this.#connection,
      "DMA_LOGGING_REPORT",
      head + bytes,
      request as Uint8Array<ArrayBuffer>,
    );
    const words = new Uint32Array(new SharedArrayBuffer(bytes));
    new Uint8Array(words.buffer).set(answer.subarray(head, head + bytes));
    // What a server sets behind the range is not what was asked.
    clearTail(words, bits);
    into.or(new DirtyBitmap({ iova, length, granule: pageSize }, words));
  }

  #checkRegion(syscall: string, index: number, offset: number, bytes: number): void {
    const attempted = () => `access ${bytes} bytes at ${hex(offset)} of region ${index} of '${this.id}'`;
    this.#checkOpen(syscall, attempted);
    const region = this.regions.find((candidate) => candidate.index === index);
    if (region !== undefined && offset >= 0 && bytes >= 0 && offset + bytes <= region.bytes) return;
    const has = this.regions.map(({ index: i, name, bytes: b }) => `${i} (${name}, ${b} bytes)`).join(", ");
    throw new UapiError("EINVAL", { syscall, attempted: attempted(), remedy: `its regions are ${has}` });
  }

  #binding(syscall: string, attempted: string) {
    this.#checkOpen(syscall, () => attempted);
    if (this.#bound !== null) return this.#bound;
    throw new UapiError("EINVAL", { syscall, attempted, remedy: "bind it to an iommufd first" });
  }

  #checkOpen(syscall: string, attempted: () => string): void {
    if (this.#closing === undefined) return;
    throw new UapiError("EBADF", { syscall, attempted: attempted(), remedy: "it is closed" });
  }
}

function beyond64Bits({ iova, length }: { iova: bigint; length: bigint }): boolean {
  return iova < 0n || length < 0n || iova + length > U64_MAX;
}
