import { DirtmapError } from "../../errors.js";
import type { PrecopyInfo, ResumingStream, SavingStream } from "../../host/host.js";
import type { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import { StateDecoder, StateEncoder, type StateIdentity } from "../state-stream.js";

/*
 * The data transfer sessions of a migrating device: what is read from, or written to, the data_fd that an arc returns
 * (include/uapi/linux/vfio.h, struct vfio_precopy_info and the comment above it).
 */

/** Bytes that wait to be read. */
interface Segment {
  readonly kind: "initial" | "dirty" | "final";
  readonly data: Uint8Array;
  at: number;
}

/** What a session asks of its device. */
export interface SessionDevice {
  readonly identity: StateIdentity;
  /** The state as it is now. */
  snapshot(): Promise<Uint8Array>;
  /** Held while the device changes state. */
  readonly lock: Lock;
  /** The user opted in to VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2. */
  readonly precopyInfoV2: boolean;
}

/**
 * A saving session. In pre-copy it holds the initial data, and later what changed since: a look with
 * {@link precopyInfo} finds new changes, as with mlx5, so that reading alone comes to the temporary end of stream.
 */
export class SavingSession implements SavingStream {
  readonly direction = "saving";
  readonly #device: SessionDevice;
  readonly #encoder: StateEncoder;
  #segments: Segment[] = [];
  #phase: "pre-copy" | "stop-copy" | "ended" = "pre-copy";
  #reinit = false;
  #open = true;

  constructor(device: SessionDevice) {
    this.#device = device;
    this.#encoder = new StateEncoder(device.identity);
  }

  /** A PRE_COPY state was entered: the initial data. */
  beginPreCopy(image: Uint8Array): void {
    this.#push("initial", this.#encoder.encode(image));
    this.#push("initial", this.#encoder.encodeStopCopySize(image.byteLength));
  }

  /** STOP_COPY was entered: what is left, and the end. The image is final. */
  finish(image: Uint8Array): void {
    this.#push("final", this.#encoder.encode(image));
    this.#push("final", this.#encoder.end());
    this.#phase = "stop-copy";
  }

  /** The device left the saving group: the session is over. */
  end(): void {
    this.#phase = "ended";
    this.#segments = [];
  }

  /** Bytes that a stop-copy with this image would still have to transfer. */
  remaining(image: Uint8Array): number {
    const waiting = this.#waiting();
    return this.#phase === "pre-copy" ? waiting + this.#encoder.sizeOf(image) + this.#encoder.endBytes : waiting;
  }

  async read(bytes: number): Promise<Uint8Array> {
    const call = { syscall: "read", attempted: `read ${bytes} bytes of device state` };
    this.#check(call);
    if (!Number.isSafeInteger(bytes) || bytes < 1)
      throw new UapiError("EINVAL", { ...call, remedy: "read 1 byte or more" });
    return this.#device.lock.run(async () => {
      this.#check(call);
      const segment = this.#segments[0];
      if (segment === undefined) {
        if (this.#phase === "stop-copy") return new Uint8Array(0);
        throw new UapiError("ENOMSG", { ...call, remedy: "ask for the pre-copy information, or go to STOP_COPY" });
      }
      const data = segment.data.subarray(segment.at, segment.at + bytes);
      segment.at += data.byteLength;
      if (segment.at === segment.data.byteLength) this.#segments.shift();
      if (!this.#segments.some(({ kind }) => kind === "initial")) this.#reinit = false;
      return data;
    });
  }

  async precopyInfo(): Promise<PrecopyInfo> {
    const call = { syscall: "VFIO_MIG_GET_PRECOPY_INFO", attempted: "ask how much pre-copy data there is" };
    this.#check(call);
    return this.#device.lock.run(async () => {
      this.#check(call);
      if (this.#phase !== "pre-copy") throw new UapiError("EINVAL", { ...call, remedy: "ask in a PRE_COPY state" });
      if (this.#segments.length === 0) this.#findChanges(await this.#device.snapshot());
      return { initialBytes: this.#waiting("initial"), dirtyBytes: this.#waiting("dirty"), reinit: this.#reinit };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false;
    this.#segments = [];
  }

  #findChanges(image: Uint8Array): void {
    const reinit = this.#encoder.restartsWith(image) && this.#device.precopyInfoV2;
    this.#push(reinit ? "initial" : "dirty", this.#encoder.encode(image));
    this.#reinit = reinit;
  }

  #push(kind: Segment["kind"], data: Uint8Array): void {
    if (data.byteLength > 0) this.#segments.push({ kind, data, at: 0 });
  }

  #waiting(kind?: Segment["kind"]): number {
    return this.#segments.reduce(
      (sum, segment) =>
        kind === undefined || segment.kind === kind ? sum + segment.data.byteLength - segment.at : sum,
      0,
    );
  }

  #check(call: { syscall: string; attempted: string }): void {
    if (!this.#open) throw new UapiError("EBADF", { ...call, remedy: "the stream is closed" });
    if (this.#phase === "ended")
      throw new UapiError("ENODEV", { ...call, remedy: "the device left the saving states" });
  }
}

/** A resuming session: takes the stream in; leaving RESUMING loads it. */
export class ResumingSession implements ResumingStream {
  readonly direction = "resuming";
  readonly #decoder: StateDecoder;
  #ended = false;
  #open = true;
  #bad: DirtmapError | undefined;

  /** @param maxImage bytes of the largest state that the device can have */
  constructor(identity: StateIdentity, maxImage: number) {
    this.#decoder = new StateDecoder(identity, maxImage);
  }

  /** What is wrong with the data that was written. */
  get problem(): DirtmapError | undefined {
    return this.#bad;
  }

  async write(data: Uint8Array): Promise<void> {
    const call = { syscall: "write", attempted: `write ${data.byteLength} bytes of device state` };
    if (!this.#open) throw new UapiError("EBADF", { ...call, remedy: "the stream is closed" });
    if (this.#ended) throw new UapiError("ENODEV", { ...call, remedy: "the device left RESUMING" });
    if (this.#bad === undefined) {
      try {
        this.#decoder.write(data);
        return;
      } catch (error) {
        if (!(error instanceof DirtmapError)) throw error;
        this.#bad = error;
      }
    }
    throw new UapiError("EINVAL", {
      ...call,
      attempted: `${call.attempted}: ${this.#bad.message}`,
      remedy: "reset the device, and resume it with its own model's state",
      cause: this.#bad,
    });
  }

  /** RESUMING is left. Returns the image. @throws DirtmapError `BAD_DEVICE_STATE` where the data is not whole */
  finish(): Uint8Array<ArrayBuffer> {
    this.#ended = true;
    if (this.#bad !== undefined) throw this.#bad;
    return this.#decoder.finish();
  }

  /** The session is over without a state. */
  end(): void {
    this.#ended = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false;
  }
}
