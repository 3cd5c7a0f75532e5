import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { hex, isPowerOfTwo } from "../memory/address.js";
import { Lock } from "../threads/lock.js";
import { type ErrnoName, isErrno, UapiError } from "../uapi/errno.js";
import {
  type DeviceFeature,
  type MigState,
  SAVING_GROUP,
  VFIO_DEVICE_STATE,
  vfio_device_feature_dma_logging_report,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
} from "../uapi/vfio.js";
import type { ResumingSession, SavingSession, SessionDevice } from "./data-session.js";
import { checkRegionAccess, plausibleBytes } from "./device-checks.js";
import { type FeatureTransport, getFeature, requestLog, setFeature, stateOf, supportOf } from "./device-feature.js";
import {
  checkDmaLoggingReport,
  checkDmaLoggingStart,
  LOG_IS_OFF,
  LOG_IS_ON,
  type LoggedRange,
  noDmaLogging,
} from "./dma-logging-checks.js";
import type { BitmapQuery, DataStream, IrqInfo, MigrationSupport, RegionInfo, TrackingFlags } from "./host.js";
import { type Call, refuse } from "./iommufd-checks.js";

const SET_STATE = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";
const DATA_SIZE = "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE";
const CANT_MIGRATE = "its driver or server can't migrate it";
/** Of a log, in bytes: nothing larger is plausible. */
const LARGEST_GRANULE = 1n << 40n;

type Session = SavingSession | ResumingSession;

/**
 * The part of a VfioDevice that is the same wherever the device is, behind this kernel or behind a server: its features, its
 * data transfer sessions, its log and its regions.
 *
 * What holds: the device's own side keeps its state, and this object what lives as long as its descriptor or connection: the
 * session that is under way, and that the log is on. State changes, resets and log switches happen one at a time.
 */
export abstract class FeatureDevice<Region extends RegionInfo = RegionInfo> {
  abstract readonly id: string;
  abstract readonly regions: readonly Region[];
  abstract readonly irqs: readonly IrqInfo[];
  protected abstract readonly features: FeatureTransport;
  protected readonly lock = new Lock();
  #session: Session | null = null;
  #precopyInfoV2 = false;
  #logging = false;

  /** Refuses to end or to ask something where the device is closed, or not bound. @throws UapiError EBADF, EINVAL */
  protected abstract checkOpen(call: Call): void;

  /** Refuses to begin something, besides, where the device is on its way out. @throws UapiError ENODEV */
  protected checkUsable(call: Call): void {
    this.checkOpen(call);
  }

  /** @param fd the data_fd that came with the state; negative: none */
  protected abstract openSession(direction: Session["direction"], fd: number, device: SessionDevice): Session;

  /** Part of a region, the first at least; returns its bytes. */
  protected abstract readRegion(region: Region, offset: number, into: Uint8Array): Promise<number>;
  protected abstract writeRegion(region: Region, offset: number, data: Uint8Array): Promise<number>;

  /** An errno with which a state was refused, with what the device's own side knows besides. */
  protected async explained(error: UapiError): Promise<Error> {
    return error;
  }

  /** What would help against an errno with which a state was refused. */
  protected remedyOf(_code: ErrnoName): string | undefined {
    return undefined;
  }

  async reset(): Promise<void> {
    const call = { syscall: "VFIO_DEVICE_RESET", attempted: `reset '${this.id}'` };
    this.checkUsable(call);
    await this.lock.run(() => this.resetToRunning(call));
  }

  async supports(feature: DeviceFeature): Promise<boolean> {
    this.checkOpen({ syscall: `VFIO_DEVICE_FEATURE_${feature}`, attempted: `ask '${this.id}' for ${feature}` });
    return this.features.probe(feature);
  }

  async migration(): Promise<MigrationSupport> {
    const call = { syscall: "VFIO_DEVICE_FEATURE_MIGRATION", attempted: `ask '${this.id}' how it migrates` };
    this.checkOpen(call);
    const { flags } = await migrating(getFeature(this.features, "MIGRATION", vfio_device_feature_migration, call));
    return supportOf(flags);
  }

  /**
   * A log of its own is what its driver or server offers; an mdev's may be a stub: mtty does no DMA, and its log never reports
   * anything. Tracking through a container shared with other devices is in no Linux: iommufd has no object that holds one.
   */
  async trackingFlags(): Promise<TrackingFlags> {
    return { tracksInternally: await this.supports("DMA_LOGGING_START"), tracksThroughContainer: false };
  }

  async state(): Promise<MigState> {
    const call = { syscall: SET_STATE, attempted: `ask for the state of '${this.id}'` };
    this.checkUsable(call);
    return this.#state(call);
  }

  async setState(next: MigState): Promise<DataStream | null> {
    const call = { syscall: SET_STATE, attempted: `move '${this.id}' to ${next}` };
    this.checkUsable(call);
    return this.lock.run(async () => {
      const from = await this.#state(call);
      let fd: number;
      try {
        fd = await this.#requestState(next, call);
      } catch (error) {
        throw await this.#stateError(error, from, next);
      }
      const begun = sessionBegunBy(from, next);
      if (begun === null) await this.#endSessionUnlessIn(next);
      else {
        await this.endSession(`the device went to ${next}`);
        const precopyInfoV2 = () => this.#precopyInfoV2;
        this.#session = this.openSession(begun, fd, { device: this.id, precopyInfoV2 });
      }
      if (this.#session?.direction === "saving") this.#session.final = next === "STOP_COPY";
      return begun === null ? null : this.#session;
    });
  }

  /** 0 where the device can't say: Linux before 6.2 and libvfio-user's servers don't have the feature. */
  async dataSize(): Promise<number> {
    const call = { syscall: DATA_SIZE, attempted: `ask how large the state of '${this.id}' is` };
    this.checkUsable(call);
    if (!(await this.features.probe("MIG_DATA_SIZE"))) {
      return (await this.features.probe("MIG_DEVICE_STATE")) ? 0 : refuse("ENOTTY", call, CANT_MIGRATE);
    }
    const layout = vfio_device_feature_mig_data_size;
    return plausibleBytes((await getFeature(this.features, "MIG_DATA_SIZE", layout, call)).stop_copy_length, call);
  }

  async enablePrecopyInfoV2(): Promise<void> {
    const call = { syscall: "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2", attempted: `opt in on '${this.id}'` };
    this.checkUsable(call);
    try {
      await this.features.set("MIG_PRECOPY_INFOv2", new Uint8Array(0), call);
    } catch (error) {
      // As the kernel answers of a driver without pre-copy, where it knows the feature.
      throw isErrno(error, "ENOTTY") ? new UapiError("EINVAL", { ...call, cause: error }) : error;
    }
    this.#precopyInfoV2 = true;
  }

  async startDmaLogging(args: { pageSize: number; ranges: readonly LoggedRange[] }): Promise<number> {
    const { pageSize, ranges } = args;
    const attempted = `log ${ranges.length} ranges of '${this.id}' by ${pageSize} bytes`;
    const call = { syscall: "VFIO_DEVICE_FEATURE_DMA_LOGGING_START", attempted };
    this.checkUsable(call);
    await this.#checkHasLog("start");
    checkDmaLoggingStart(pageSize, ranges, call);
    return this.lock.run(async () => {
      // "Another start is not allowed in the meantime" (vfio.h); not every driver sees to it.
      if (this.#logging) refuse("EINVAL", call, LOG_IS_ON);
      const page_size = await requestLog(this.features, args, call);
      this.#logging = true;
      if (isPowerOfTwo(page_size) && page_size <= LARGEST_GRANULE) return Number(page_size);
      await this.stopLog();
      return refuse(
        "EPROTO",
        call,
        `mend its driver or server: it chose a page size of ${hex(page_size)}, which is none`,
      );
    });
  }

  async reportDmaLogging(query: BitmapQuery): Promise<void> {
    const { iova, length, pageSize, into } = query;
    const attempted = `read the log of ${hex(length)} bytes at ${hex(iova)} of '${this.id}' by ${pageSize}`;
    const call = { syscall: "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT", attempted };
    this.checkUsable(call);
    await this.#checkHasLog("report");
    checkDmaLoggingReport(query, call);
    if (!this.#logging) refuse("EINVAL", call, LOG_IS_OFF);
    if (length === 0n) return;
    // Bit 0 is the iova of the question: the caller's bitmap takes the bits itself where it begins there, as a whole one does.
    const inPlace = iova === into.iova;
    const bitmap = inPlace ? into : new DirtyBitmap({ iova, length, granule: pageSize });
    const report = vfio_device_feature_dma_logging_report;
    const values = { iova, length, page_size: BigInt(pageSize) };
    await getFeature(this.features, "DMA_LOGGING_REPORT", report, call, { values, bitmap });
    if (!inPlace) into.or(bitmap);
  }

  async stopDmaLogging(): Promise<void> {
    this.checkOpen(this.#stopCall);
    await this.lock.run(() => this.stopLog());
  }

  async regionRead(index: number, offset: number, bytes: number): Promise<Uint8Array> {
    const region = this.#region("read", index, offset, bytes);
    const data = new Uint8Array(bytes);
    await this.#inParts("read", index, bytes, (done) => this.readRegion(region, offset + done, data.subarray(done)));
    return data;
  }

  async regionWrite(index: number, offset: number, data: Uint8Array): Promise<void> {
    const bytes = data.byteLength;
    const region = this.#region("write", index, offset, bytes);
    await this.#inParts("write", index, bytes, (done) => this.writeRegion(region, offset + done, data.subarray(done)));
  }

  /** What a reset ends in; for who holds the lock. */
  protected async resetToRunning(call: Call): Promise<void> {
    await this.endSession("the device was reset");
    await this.features.reset(call);
    // Drivers and servers end logging in their reset, or leave it on; here it is off after it, as the interface says.
    if (this.#logging) await this.stopLog();
    // VFIO's reset ends in RUNNING; libvfio-user's leaves the state as it is, since its commit 4f4fce4.
    if (!(await this.features.probe("MIG_DEVICE_STATE")) || (await this.#state(call)) === "RUNNING") return;
    await this.#requestState("RUNNING", call);
  }

  protected get logging(): boolean {
    return this.#logging;
  }

  protected async stopLog(): Promise<void> {
    await this.features.set("DMA_LOGGING_STOP", new Uint8Array(0), this.#stopCall);
    this.#logging = false;
  }

  protected async endSession(why: string): Promise<void> {
    const session = this.#session;
    this.#session = null;
    await session?.end(why);
  }

  get #stopCall(): Call {
    return { syscall: "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", attempted: `stop the log of '${this.id}'` };
  }

  async #state(call: Call): Promise<MigState> {
    const layout = vfio_device_feature_mig_state;
    const answer = getFeature(this.features, "MIG_DEVICE_STATE", layout, call, { values: { data_fd: -1 } });
    const { device_state } = await migrating(answer);
    const told = { ...call, attempted: `${call.attempted}: it is in state ${device_state}` };
    return (
      stateOf(device_state) ??
      refuse("EPROTO", told, "mend its driver or server: vfio.h of Linux 7.2 has no such state")
    );
  }

  /** Returns the data_fd. */
  async #requestState(next: MigState, call: Call): Promise<number> {
    const layout = vfio_device_feature_mig_state;
    const values = { device_state: VFIO_DEVICE_STATE[next], data_fd: -1 };
    return (await setFeature(this.features, "MIG_DEVICE_STATE", layout, call, { values })).data_fd;
  }

  /** What a failed state change means: where the device is now decides what can be done. */
  async #stateError(error: unknown, from: MigState, next: MigState): Promise<unknown> {
    if (!(error instanceof UapiError) || error.code === "ENOTTY") return error;
    const call = { syscall: SET_STATE, attempted: `move '${this.id}' to ${next}` };
    // Not known where the device is: then the first error says more than the second.
    const now = await this.#state(call).catch(() => null);
    if (now === null) return error;
    await this.#endSessionUnlessIn(now);
    const cause = await this.explained(error);
    const why = cause === error ? "" : `: ${cause.message}`;
    // EINVAL stays: the arc doesn't exist, or the state that it was given is bad.
    const isFailure = now === "ERROR" && from !== "ERROR" && error.code !== "EINVAL";
    return new UapiError(isFailure ? "EIO" : error.code, {
      syscall: SET_STATE,
      attempted: `${call.attempted}: it is in ${now}${why}`,
      remedy: REMEDY_OF_STATE[now] ?? this.remedyOf(error.code) ?? "see the arcs of enum vfio_device_mig_state",
      cause,
    });
  }

  /** A session lives as long as the device stays in the states that it belongs to. */
  async #endSessionUnlessIn(state: MigState): Promise<void> {
    const isSaving = this.#session?.direction === "saving";
    if (isSaving ? SAVING_GROUP.has(state) : state === "RESUMING") return;
    await this.endSession(isSaving ? "the device left the saving states" : "the device left RESUMING");
  }

  /** A device without a log says so before anything is said about the arguments. */
  async #checkHasLog(operation: "start" | "report"): Promise<void> {
    if (!this.#logging && !(await this.features.probe("DMA_LOGGING_START"))) throw noDmaLogging(operation);
  }

  #region(access: "read" | "write", index: number, offset: number, bytes: number): Region {
    this.checkUsable({ syscall: `p${access}`, attempted: `${access} region ${index} of '${this.id}'` });
    return checkRegionAccess(this, access, { region: index, offset, bytes });
  }

  /** An access may do less than was asked: the rest is asked for, until it does nothing. @throws UapiError EIO */
  async #inParts(access: "read" | "write", region: number, bytes: number, part: (done: number) => Promise<number>) {
    for (let done = 0; done < bytes; ) {
      const count = await part(done);
      const attempted = `${access} ${bytes} bytes of region ${region} of '${this.id}': it ends after ${done}`;
      if (count === 0) refuse("EIO", { syscall: `p${access}`, attempted }, "access less of it, or reset the device");
      done += count;
    }
  }
}

/** What to do about a state change that failed, by where it left the device. */
const REMEDY_OF_STATE: Partial<Record<MigState, string>> = {
  ERROR: "reset the device: it is in ERROR",
  RESUMING: "write the whole state of a device of the same model and version, or reset the device",
};

/** The session that a state change begins; null: none. */
function sessionBegunBy(from: MigState, next: MigState): Session["direction"] | null {
  if (from === next) return null;
  if (next === "RESUMING") return "resuming";
  return SAVING_GROUP.has(next) && !SAVING_GROUP.has(from) ? "saving" : null;
}

/** Says what ENOTTY means of a migration feature. */
async function migrating<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (!isErrno(error, "ENOTTY")) throw error;
    const { syscall, attempted = "" } = error;
    throw new UapiError("ENOTTY", {
      syscall,
      attempted,
      remedy: "its driver or server can't migrate it",
      cause: error,
    });
  }
}
