import { DirtmapError } from "../errors.js";
import type { ResumingStream, SavingStream, VfioDevice } from "../host/host.js";
import { MiB } from "../memory/address.js";
import { isErrno } from "../uapi/errno.js";
import { DeviceError } from "./device-error.js";
import { type ControlMessage, MAX_MESSAGE_DATA } from "./stream/messages.js";

/*
 * Moves the data streams of VFIO devices: from a SavingStream into DEVICE_STATE messages, and from those into a
 * ResumingStream. Chunks are counted and the last one is marked, so that a stream with a part missing is refused here,
 * not by a device that has swallowed half of it. Frames carry checksums (stream/frame.ts).
 */

/** No device of this project has more; a stream that claims to is broken, and is not stored. */
export const MAX_DEVICE_STATE_BYTES = 1024 * MiB;

/** In one pre-copy round no more of a device's stream is read than this, so that a device can't hold up the rounds. */
const MAX_PRECOPY_BYTES_PER_ROUND = 64 * MiB;

type DeviceStateMessage = Extract<ControlMessage, { type: "DEVICE_STATE" }>;
type Send = (message: DeviceStateMessage) => Promise<void>;

/** The saving side of one device. */
export class DeviceStateSender {
  readonly device: string;
  readonly #stream: SavingStream;
  readonly #send: Send;
  #chunk = 0;
  #bytes = 0;

  constructor(device: string, stream: SavingStream, send: Send) {
    this.device = device;
    this.#stream = stream;
    this.#send = send;
  }

  /** Sent so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * In a PRE_COPY state: sends what there is now. True: up to the temporary end of the stream (ENOMSG); false: there is
   * more, and it is better sent before the device is stopped.
   */
  async sendPrecopy(signal: AbortSignal): Promise<boolean> {
    for (let sent = 0; sent < MAX_PRECOPY_BYTES_PER_ROUND; ) {
      signal.throwIfAborted();
      let data: Uint8Array;
      try {
        data = await this.#stream.read(MAX_MESSAGE_DATA);
      } catch (error) {
        if (isErrno(error, "ENOMSG")) return true;
        throw error;
      }
      // The final end of stream can't come before STOP_COPY; a device that says so is sent its end there.
      if (data.length === 0) return true;
      await this.#sendChunk(data, false);
      sent += data.length;
    }
    return false;
  }

  /** In STOP_COPY: sends all that is left, and the end. */
  async sendRest(signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      const data = await this.#stream.read(MAX_MESSAGE_DATA);
      await this.#sendChunk(data, data.length === 0);
      if (data.length === 0) return;
    }
  }

  async #sendChunk(data: Uint8Array, last: boolean): Promise<void> {
    this.#bytes += data.length;
    checkStateSize(this.device, this.#bytes);
    await this.#send({ type: "DEVICE_STATE", device: this.device, chunk: this.#chunk++, last, data });
  }

  /** Closes the stream. */
  async close(): Promise<void> {
    await this.#stream[Symbol.asyncDispose]();
  }
}

type Resumable = Pick<VfioDevice, "id" | "setState">;

/** The resuming side of one device. */
export class DeviceStateReceiver {
  readonly #device: Resumable;
  readonly #stream: ResumingStream;
  #chunks = 0;
  #bytes = 0;
  #complete = false;

  private constructor(device: Resumable, stream: ResumingStream) {
    this.#device = device;
    this.#stream = stream;
  }

  /** Takes a device to RESUMING. */
  static async open(device: Resumable): Promise<DeviceStateReceiver> {
    const stream = await asked(device.id, "go to RESUMING", "DEVICE_FAILED", device.setState("RESUMING"));
    if (stream?.direction !== "resuming") {
      throw new DirtmapError(`${device.id} gave no stream to resume from`, { code: "BAD_DEVICE_STATE" });
    }
    return new DeviceStateReceiver(device, stream);
  }

  get id(): string {
    return this.#device.id;
  }

  /**
   * Writes a chunk to the device.
   * @throws DirtmapError `BAD_DEVICE_STATE` for a chunk out of order, after the last, or too many bytes; the device's error
   */
  async write({ chunk, last, data }: DeviceStateMessage): Promise<void> {
    if (this.#complete || chunk !== this.#chunks) {
      throw new DirtmapError(
        `the state of ${this.id} came with chunk ${chunk} where ${this.#complete ? "nothing" : `chunk ${this.#chunks}`} was due`,
        { code: "BAD_DEVICE_STATE" },
      );
    }
    this.#chunks++;
    this.#bytes += data.length;
    checkStateSize(this.id, this.#bytes);
    if (data.length > 0) await this.#taking(this.#stream.write(data));
    this.#complete = last;
  }

  /** RESUMING to STOP: the device verifies and takes over what was written. @throws where the stream is incomplete or wrong */
  async finish(): Promise<void> {
    if (!this.#complete) {
      throw new DirtmapError(`the state of ${this.id} is not complete: ${this.#chunks} chunks and no last one`, {
        code: "BAD_DEVICE_STATE",
      });
    }
    await this.#taking(this.#device.setState("STOP"));
    await this.#stream[Symbol.asyncDispose]();
  }

  #taking<T>(doing: Promise<T>): Promise<T> {
    return asked(this.id, "take its state", "BAD_DEVICE_STATE", doing);
  }
}

/** What a device is asked for; where it refuses, in the words that a report has. */
async function asked<T>(device: string, what: string, code: string, doing: Promise<T>): Promise<T> {
  try {
    return await doing;
  } catch (cause) {
    // That the two are devices of the same shape is known by then.
    const remedy =
      code === "BAD_DEVICE_STATE" ? "have the device's driver or server in the same version on both sides" : undefined;
    throw new DeviceError(device, what, { code, remedy, cause });
  }
}

/** @throws DirtmapError `BAD_DEVICE_STATE` for more than {@link MAX_DEVICE_STATE_BYTES} */
export function checkStateSize(device: string, bytes: number): void {
  if (bytes <= MAX_DEVICE_STATE_BYTES) return;
  throw new DirtmapError(`the state of ${device} is larger than ${MAX_DEVICE_STATE_BYTES} bytes`, {
    code: "BAD_DEVICE_STATE",
    attempted: `move the state of ${device}`,
  });
}
