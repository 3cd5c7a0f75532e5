import { type DirtmapError, explain } from "../../errors.js";
import type { DataStream, MigrationSupport } from "../../host/host.js";
import { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import { type MigState, SAVING_GROUP } from "../../uapi/vfio.js";
import type { ModelInfo } from "../model.js";
import { StateEncoder } from "../state-stream.js";
import { ResumingSession, SavingSession, type SessionDevice } from "./data-stream.js";
import { type Arc, migrationPath, P2P_STATES, RUNNING_STATES } from "./mig-state.js";

const SET_STATE = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";

/** What a device may do in a state. */
export type RunMode = "running" | "p2p-quiesced" | "stopped";

/** The device under the driver, wherever its model runs. */
export interface DrivenDevice {
  /** Resolves when DMA that the new mode forbids has landed. */
  setMode(mode: RunMode): Promise<void>;
  save(): Promise<Uint8Array>;
  /** @throws DirtmapError `BAD_DEVICE_STATE` */
  load(state: Uint8Array): Promise<void>;
  /** Why the model can't go on, if it can't. */
  readonly failure: string | undefined;
}

/**
 * The part of a VFIO driver that migrates its device: the state machine of enum vfio_device_mig_state and its data
 * transfer sessions, over a model that knows only modes and images.
 *
 * What holds: `state` is the state that the device is in, and its mode follows from it. State changes and reads of the
 * saving stream happen one at a time, under the lock, as under a driver's state mutex. A session exists exactly while the
 * state is in the saving group, or RESUMING.
 */
export class MigrationDriver {
  /** Held while the device changes state: for what else must not happen meanwhile. */
  readonly lock = new Lock();
  readonly #id: string;
  readonly #info: ModelInfo;
  readonly #device: DrivenDevice;
  readonly #maxImage: number;
  readonly #session: SessionDevice & { precopyInfoV2: boolean };
  #state: MigState = "RUNNING";
  #saving: SavingSession | null = null;
  #resuming: ResumingSession | null = null;
  #failArc: Arc | null = null;
  #failedBecause: string | null = null;

  /** @param maxImage bytes of the largest state that the device can have */
  constructor({ id, info, device, maxImage }: { id: string; info: ModelInfo; device: DrivenDevice; maxImage: number }) {
    this.#id = id;
    this.#info = info;
    this.#device = device;
    this.#maxImage = maxImage;
    this.#session = {
      identity: { model: info.model, stateVersion: info.stateVersion },
      snapshot: () => device.save(),
      lock: this.lock,
      precopyInfoV2: false,
    };
  }

  /** @throws UapiError ENOTTY for a device that can't migrate */
  support(syscall = "VFIO_DEVICE_FEATURE_MIGRATION"): MigrationSupport {
    const { migration } = this.#info;
    if (migration !== null) return migration;
    throw new UapiError("ENOTTY", { syscall, attempted: `migrate '${this.#id}'`, remedy: "it can't be migrated" });
  }

  get state(): MigState {
    this.support(SET_STATE);
    return this.#state;
  }

  /** True while the device does no DMA at all. */
  get quiet(): boolean {
    const mode = modeOf(this.#state);
    return mode === "stopped" || (mode === "p2p-quiesced" && !this.#info.separatesP2p);
  }

  /** Why the device is in ERROR, or what is wrong with the state that it is being given; null: nothing is. */
  get problem(): string | null {
    return this.#resuming?.problem?.message ?? this.#failedBecause;
  }

  /** The session whose stream {@link setState} has returned, while it lasts. */
  get stream(): DataStream | null {
    return this.#saving ?? this.#resuming;
  }

  /** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET. @throws UapiError EINVAL, EIO */
  setState(next: MigState): Promise<DataStream | null> {
    const support = this.support(SET_STATE);
    return this.lock.run(async () => {
      const path = migrationPath(this.#state, next, support);
      if (path === null) {
        throw new UapiError("EINVAL", {
          syscall: SET_STATE,
          attempted: `move '${this.#id}' from ${this.#state} to ${next}`,
          remedy: this.#state === "ERROR" ? "reset the device" : "see the arcs of enum vfio_device_mig_state",
        });
      }
      for (const arc of path) await this.#step(arc);
      return path.length === 0 ? null : this.#streamBegunBy(path);
    });
  }

  /** VFIO_DEVICE_FEATURE_MIG_DATA_SIZE */
  dataSize(): Promise<number> {
    this.support("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE");
    return this.lock.run(async () => {
      const image = await this.#device.save();
      if (this.#saving !== null) return this.#saving.remaining(image);
      const encoder = new StateEncoder(this.#session.identity);
      return encoder.sizeOf(image) + encoder.endBytes;
    });
  }

  /** VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 @throws UapiError EINVAL without pre-copy, where other features say ENOTTY */
  enablePrecopyInfoV2(): void {
    if (this.#info.migration?.preCopy !== true) {
      throw new UapiError("EINVAL", {
        syscall: "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2",
        attempted: `opt in on '${this.#id}', which has no pre-copy`,
      });
    }
    this.#session.precopyInfoV2 = true;
  }

  /**
   * VFIO_DEVICE_RESET: stops the device, ends its sessions, and lets it run again when `resetDevice` has put it into the
   * state after power-on. Also out of ERROR.
   */
  reset(resetDevice: () => Promise<void>): Promise<void> {
    return this.lock.run(async () => {
      await this.#device.setMode("stopped");
      this.endSessions();
      await resetDevice();
      this.#failedBecause = null;
      this.#state = "RUNNING";
      await this.#device.setMode("running");
    });
  }

  /** Ends the data transfer sessions: the device is reset or closed. */
  endSessions(): void {
    this.#saving?.end();
    this.#saving = null;
    this.#resuming?.end();
    this.#resuming = null;
  }

  /** For tests: the device fails, into ERROR, when it is next asked to take this arc. */
  failNext(arc: Arc): void {
    this.#failArc = arc;
  }

  /** One arc. An error leaves the device where it is, or in ERROR. */
  async #step(arc: Arc): Promise<void> {
    const { from, to } = arc;
    try {
      if (this.#failArc?.from === from && this.#failArc.to === to) {
        this.#failArc = null;
        throw new Error("made to fail by a test");
      }
      if (this.#device.failure !== undefined) throw new Error(this.#device.failure);
      if (from === "RESUMING") await this.#load();
      if (modeOf(from) !== modeOf(to)) await this.#device.setMode(modeOf(to));
      if (SAVING_GROUP.has(from) && !SAVING_GROUP.has(to)) this.endSessions();
      if (SAVING_GROUP.has(to)) await this.#save(to);
      if (to === "RESUMING") this.#resuming = new ResumingSession(this.#session.identity, this.#maxImage);
      this.#state = to;
    } catch (cause) {
      await this.#fail(arc, cause);
    }
  }

  /** Enters a state of the saving group, from outside or from within. */
  async #save(to: MigState): Promise<void> {
    const begins = this.#saving === null;
    const session = this.#saving ?? new SavingSession(this.#session);
    this.#saving = session;
    if (to === "STOP_COPY") session.finish(await this.#device.save());
    else if (begins) session.beginPreCopy(await this.#device.save());
  }

  /** Leaves RESUMING: what was written becomes the device's state. */
  async #load(): Promise<void> {
    const session = this.#resuming;
    this.#resuming = null;
    if (session !== null) await this.#device.load(session.finish());
  }

  /** To ERROR: it does no DMA there, and only a reset leads out. */
  async #fail({ from, to }: Arc, cause: unknown): Promise<never> {
    this.#state = "ERROR";
    this.#failedBecause = cause instanceof Error ? cause.message : String(cause);
    this.endSessions();
    await this.#device.setMode("stopped").catch(() => undefined);
    const isBadState = (cause as Partial<DirtmapError>).code === "BAD_DEVICE_STATE";
    throw new UapiError(isBadState ? "EINVAL" : "EIO", {
      syscall: SET_STATE,
      attempted: `move '${this.#id}' from ${from} to ${to}: ${explain(cause)}`,
      remedy: "reset the device: it is in ERROR",
      cause,
    });
  }

  #streamBegunBy(path: readonly Arc[]): DataStream | null {
    const { to } = path[path.length - 1];
    if (to === "RESUMING") return this.#resuming;
    const begins = path.some((arc) => !SAVING_GROUP.has(arc.from) && SAVING_GROUP.has(arc.to));
    return begins && SAVING_GROUP.has(to) ? this.#saving : null;
  }
}

function modeOf(state: MigState): RunMode {
  if (RUNNING_STATES.has(state)) return "running";
  return P2P_STATES.has(state) ? "p2p-quiesced" : "stopped";
}
