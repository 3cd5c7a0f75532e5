import type { StampTrail } from "../../devices/stamp.js";
import type { WorkloadDevice } from "../../devices/workload.js";
import { DirtmapError } from "../../errors.js";
import type { SessionDevice } from "../../host/data-session.js";
import { type DeviceInfo, readDeviceInfo } from "../../host/device-info.js";
import { FeatureDevice } from "../../host/feature-device.js";
import type { DmaLoggingLimits, HandoverNotice, Iommufd, IrqInfo, ObjectId, RegionInfo } from "../../host/host.js";
import { type Call, refuse } from "../../host/iommufd-checks.js";
import { type DeviceShape, shapeOf } from "../../host/shape.js";
import { hex } from "../../memory/address.js";
import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import { VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, vfio_irq_set } from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  DIRTMAP_HANDOVER,
  DIRTMAP_WRITE_PATH,
  dirtmap_client_memory,
  dirtmap_handover,
  dirtmap_write_path,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_USER_COMMAND,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import type { DmaMode, WritePath } from "../server/client-memory.js";
import { Connection } from "./connection.js";
import { readCounters, type ServerCounters } from "./counters.js";
import { VfioUserResumingStream, VfioUserSavingStream } from "./data-stream.js";
import { infoByMessages } from "./device-info.js";
import { DmaMappings } from "./dma-mappings.js";
import { MessageFeatures } from "./feature.js";
import { VfioUserIommufd } from "./iommufd.js";

/** What Dirtmap's server means by an errno, by which it refuses an arc that there is. */
const STATE_REMEDIES: Readonly<Partial<Record<ErrnoName, string>>> = {
  EBUSY: "wait for the migration that another connection does, or end it: `dirtmap device status` names it",
  EPERM: "reset the device: a migration has handed it over",
};

/** The options of {@link VfioUserDevice.open}. */
export interface VfioUserDeviceOptions {
  /** Of the server's socket. */
  readonly path: string;
  readonly id: string;
  /** `auto`: memory with a descriptor is shared by it; `messages`: none is shared, so that we see every write. Default: `auto`. */
  readonly dma?: DmaMode;
  /**
   * True: the socket is a control socket. The device belongs to another client and is not reset. It can be queried, tracked and
   * migrated, but not attached or used. Default: false.
   */
  readonly control?: boolean;
  /** The longest wait for an answer of the server, in milliseconds. Default: 10 000. */
  readonly limitMs?: number;
  /** Throws if this is not the intended device, which is then left unchanged. `server` is null for another program's server. */
  readonly check?: (server: ServerCounters | null) => void;
  /** Called once the device is closed. */
  readonly onClose?: () => void;
}

/**
 * A device behind a vfio-user socket.
 *
 * Invariant, besides those of a {@link FeatureDevice}: opening resets the device, as vfio-pci does, because work of its last client
 * must not write into our memory.
 */
export class VfioUserDevice extends FeatureDevice implements WorkloadDevice {
  readonly id: string;
  readonly model: string;
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  /** The parts of our memory that the device can reach. */
  readonly mappings: DmaMappings;
  protected readonly features: MessageFeatures;
  readonly #connection: Connection;
  readonly #counters: ServerCounters | null;
  readonly #resets: boolean;
  readonly #control: boolean;
  readonly #onClose: (() => void) | undefined;
  #bound: { readonly iommufd: VfioUserIommufd; readonly id: ObjectId } | null = null;
  #closing: Promise<void> | undefined;

  private constructor(
    { id, dma = "auto", control = false, onClose }: VfioUserDeviceOptions,
    connection: Connection,
    { info, counters }: { info: DeviceInfo; counters: ServerCounters | null },
  ) {
    super();
    this.id = id;
    this.model = counters?.model ?? "vfio-user";
    this.regions = info.regions;
    this.irqs = info.irqs;
    this.mappings = new DmaMappings(id, connection, dma);
    this.features = new MessageFeatures(connection, this.mappings);
    this.#resets = info.resets;
    this.#connection = connection;
    this.#counters = counters;
    this.#control = control;
    this.#onClose = onClose;
  }

  /**
   * Connects and resets the device.
   * @throws UapiError ENOENT or ECONNREFUSED without a listener; ECONNRESET if the server has another client …
   */
  static async open(options: VfioUserDeviceOptions): Promise<VfioUserDevice> {
    const connection = await Connection.open(options.path, options);
    try {
      const counters = await readCounters(connection);
      options.check?.(counters);
      const info = await readDeviceInfo(infoByMessages(connection), options.id);
      const device = new VfioUserDevice(options, connection, { info, counters });
      if (options.control !== true) await device.#begin();
      return device;
    } catch (error) {
      connection[Symbol.dispose]();
      throw error;
    }
  }

  /** Returns the shape. For another program's server it lacks the model's own facts: the protocol has no message for them. */
  async shape(): Promise<DeviceShape> {
    this.checkOpen({ syscall: "pread", attempted: `ask what '${this.id}' is` });
    const { stateVersion = null, facts = {} } = (await this.serverCounters())?.shape ?? {};
    return shapeOf(this, { stateVersion, facts });
  }

  async bind(iommufd: Iommufd): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: `bind '${this.id}'` };
    this.checkOpen(call);
    if (this.#bound !== null) refuse("EINVAL", call, "it is bound already");
    if (!(iommufd instanceof VfioUserIommufd)) return refuse("EINVAL", call, "give an iommufd of the same host");
    const id = iommufd.bindServed(this.mappings);
    this.#bound = { iommufd, id };
    return id;
  }

  /** Why nothing can be asked of the device on this connection any more; undefined while it can. */
  get failure(): UapiError | undefined {
    return this.#connection.failure;
  }

  async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_ATTACH_IOMMUFD_PT", attempted: `attach '${this.id}' to ${ioasOrHwpt}` };
    const { iommufd, id } = this.#binding(call);
    if (this.#control) refuse("EPERM", call, "use its own socket: this one is for control");
    return iommufd.attachDevice(id, ioasOrHwpt);
  }

  async detach(): Promise<void> {
    const { iommufd, id } = this.#binding({
      syscall: "VFIO_DEVICE_DETACH_IOMMUFD_PT",
      attempted: `detach '${this.id}'`,
    });
    await iommufd.detachDevice(id);
  }

  /** Returns the log's limits if the server is Dirtmap's own, else null: the protocol has no message for them. */
  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return this.#counters?.dmaLogging ?? null;
  }

  /** Sends DIRTMAP_COMMAND.HANDOVER to Dirtmap's own server. Does nothing for others, which leave their device alone anyway. */
  async announceHandover(notice: HandoverNotice, migration: string): Promise<void> {
    this.checkOpen({ syscall: "handover", attempted: `announce that '${this.id}' is ${notice}` });
    if (this.#counters === null) return;
    const id = new TextEncoder().encode(migration);
    const request = new Uint8Array(dirtmap_handover.size + id.byteLength);
    dirtmap_handover.encode({ argsz: request.byteLength, notice: DIRTMAP_HANDOVER[notice] }, request);
    request.set(id, dirtmap_handover.size);
    await this.#connection.call(DIRTMAP_COMMAND.HANDOVER, "handover", request);
  }

  /**
   * DIRTMAP_COMMAND.WRITE_PATH: switches the way in which the device writes its client's memory, until it is switched back or
   * this connection ends. With `messages` the client does each write itself, and so tracks it. Requires Dirtmap's own server and
   * a control connection.
   */
  async switchWritePath(path: WritePath): Promise<void> {
    this.checkOpen({ syscall: "write path", attempted: `have the writes of '${this.id}' go by ${path}` });
    const request = dirtmap_write_path.encode({ argsz: dirtmap_write_path.size, path: DIRTMAP_WRITE_PATH[path] });
    await this.#connection.call(DIRTMAP_COMMAND.WRITE_PATH, "write path", request);
  }

  /** DIRTMAP_COMMAND.CLIENT_WRITE: writes the memory of the device's client, as the device's DMA by messages does. */
  async writeClientMemory(address: bigint, data: Uint8Array): Promise<void> {
    const attempted = `write ${data.byteLength} bytes at ${hex(address)} for '${this.id}'`;
    this.checkOpen({ syscall: "write client memory", attempted });
    const request = new Uint8Array(dirtmap_client_memory.size + data.byteLength);
    dirtmap_client_memory.encode({ address, count: BigInt(data.byteLength) }, request);
    request.set(data, dirtmap_client_memory.size);
    await this.#connection.call(DIRTMAP_COMMAND.CLIENT_WRITE, "write client memory", request);
  }

  /** DIRTMAP_COMMAND.CLIENT_READ: reads the memory of the device's client, as the device's DMA by messages does. */
  async readClientMemory(address: bigint, bytes: number): Promise<Uint8Array> {
    const attempted = `read ${bytes} bytes at ${hex(address)} for '${this.id}'`;
    this.checkOpen({ syscall: "read client memory", attempted });
    const request = dirtmap_client_memory.encode({ address, count: BigInt(bytes) });
    const reply = await this.#connection.call(DIRTMAP_COMMAND.CLIENT_READ, "read client memory", request);
    return reply.subarray(dirtmap_client_memory.size);
  }

  /**
   * DIRTMAP_COMMAND.CLIENT_REWRITE: makes the client overwrite whole pages of its memory with their own contents, so that its own
   * tracking sees them. The device must be stopped, and nothing else may write there meanwhile.
   */
  async rewriteClientMemory(address: bigint, bytes: number): Promise<void> {
    const syscall = "rewrite client memory";
    this.checkOpen({ syscall, attempted: `rewrite ${bytes} bytes at ${hex(address)} for '${this.id}'` });
    const most = this.#connection.agreement.maxTransfer;
    for (let done = 0; done < bytes; done += most) {
      const count = BigInt(Math.min(most, bytes - done));
      const request = dirtmap_client_memory.encode({ address: address + BigInt(done), count });
      await this.#connection.call(DIRTMAP_COMMAND.CLIENT_REWRITE, syscall, request);
    }
  }

  /**
   * VFIO_USER_DEVICE_SET_IRQS: sets the eventfds that the interrupts of one kind signal, from number `start` on. An empty list
   * removes all of that kind. The descriptors must stay open until it resolves.
   */
  async setIrqEventFds(index: number, start: number, fds: readonly number[]): Promise<void> {
    const syscall = "VFIO_USER_DEVICE_SET_IRQS";
    this.checkOpen({ syscall, attempted: `set interrupts of '${this.id}'` });
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

  /** Returns the current facts from Dirtmap's own server; null for another program's server. */
  async serverCounters(): Promise<ServerCounters | null> {
    this.checkOpen({ syscall: "counters", attempted: `ask '${this.id}' for its counters` });
    return this.#counters === null ? null : readCounters(this.#connection);
  }

  async counters(): Promise<Record<string, number>> {
    return (await this.serverCounters())?.device ?? {};
  }

  async stamps(): Promise<StampTrail | null> {
    return (await this.serverCounters())?.trail ?? null;
  }

  /** Closes the connection. The server unmaps our memory and stops the log. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.lock.run(() => this.#close());
    return this.#closing;
  }

  protected override checkOpen(call: Call): void {
    if (this.#closing !== undefined) refuse("EBADF", call, "it is closed");
  }

  protected openSession(direction: "saving" | "resuming", _fd: number, device: SessionDevice) {
    const options = {
      ...device,
      connection: this.#connection,
      hasPrecopyInfo: this.#counters !== null,
      dataSize: () => this.dataSize(),
      explained: (error: UapiError) => this.explained(error),
    };
    return direction === "saving" ? new VfioUserSavingStream(options) : new VfioUserResumingStream(options);
  }

  /** VFIO_USER_REGION_READ */
  protected async readRegion({ index: region }: RegionInfo, offset: number, into: Uint8Array): Promise<number> {
    const count = Math.min(this.#connection.agreement.maxTransfer, into.byteLength);
    const request = vfio_user_region_access.encode({ offset: BigInt(offset), region, count });
    const answer = await this.#connection.call(VFIO_USER_COMMAND.REGION_READ, "VFIO_USER_REGION_READ", request);
    into.set(answer.subarray(request.byteLength));
    return count;
  }

  /** VFIO_USER_REGION_WRITE */
  protected async writeRegion({ index: region }: RegionInfo, offset: number, data: Uint8Array): Promise<number> {
    const part = data.subarray(0, this.#connection.agreement.maxTransfer);
    const request = new Uint8Array(vfio_user_region_access.size + part.byteLength);
    vfio_user_region_access.encode({ offset: BigInt(offset), region, count: part.byteLength }, request);
    request.set(part, vfio_user_region_access.size);
    await this.#connection.call(VFIO_USER_COMMAND.REGION_WRITE, "VFIO_USER_REGION_WRITE", request);
    return part.byteLength;
  }

  /** An errno with what Dirtmap's own server knows besides: why the device refuses. Another's has it in its log. */
  protected override async explained(error: UapiError): Promise<Error> {
    const problem = (await this.serverCounters().catch(() => null))?.problem ?? null;
    return problem === null ? error : new DirtmapError(problem, { code: "DEVICE_PROBLEM", cause: error });
  }

  protected override remedyOf(code: ErrnoName): string {
    return STATE_REMEDIES[code] ?? "see the arcs of enum vfio_device_mig_state, and the server's log";
  }

  async #begin(): Promise<void> {
    const call = {
      syscall: "VFIO_USER_DEVICE_RESET",
      attempted: `reset '${this.id}', which may have had another client`,
    };
    if (this.#resets) await this.resetToRunning(call);
    else if (await this.supports("MIG_DEVICE_STATE")) await this.setState("RUNNING");
  }

  async #close(): Promise<void> {
    await this.endSession("the device is closed");
    const bound = this.#bound;
    this.#bound = null;
    try {
      if (bound !== null) await bound.iommufd.unbindDevice(bound.id);
    } finally {
      this.#connection[Symbol.dispose]();
      this.#onClose?.();
    }
  }

  #binding(call: Call) {
    this.checkOpen(call);
    return this.#bound ?? refuse("EINVAL", call, "bind it to an iommufd first");
  }
}
