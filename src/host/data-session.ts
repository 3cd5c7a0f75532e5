import { Lock } from "../threads/lock.js";
import { checkStreamRead } from "./device-checks.js";
import { precopyInfoOf } from "./device-feature.js";
import type { PrecopyInfo, ResumingStream, SavingStream } from "./host.js";
import { type Call, refuse } from "./iommufd-checks.js";

/*
 * The data transfer sessions of a device whose driver or server is elsewhere: what is read from, or written to, the data_fd of
 * a state change (include/uapi/linux/vfio.h, struct vfio_precopy_info and the comment above it).
 */

const CLOSED = "the stream is closed";

/** What a session needs to know of its device. */
export interface SessionDevice {
  /** For messages. */
  readonly device: string;
  /** MIG_PRECOPY_INFOv2 was opted in to: only then do the flags of struct vfio_precopy_info mean anything. */
  readonly precopyInfoV2: () => boolean;
}

/** What both directions have in common: transfers one at a time, and their end. */
abstract class DataSession implements AsyncDisposable {
  protected readonly device: string;
  protected readonly turns = new Lock();
  #ended: string | undefined;

  constructor({ device }: SessionDevice) {
    this.device = device;
  }

  /** The device left the states that this session belongs to: a transfer that waits is woken. */
  async end(why: string): Promise<void> {
    if (this.#ended !== undefined) return;
    this.#ended = why;
    await this.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end(CLOSED);
    // Ended by the device, perhaps a moment ago: wait for that as well.
    await this.turns.run(async () => {});
  }

  /** Lets go of what the transfers need, once none is under way. */
  protected async release(): Promise<void> {}

  protected check(call: Call): void {
    if (this.#ended !== undefined) refuse(this.#ended === CLOSED ? "EBADF" : "ENODEV", call, this.#ended);
  }
}

/** The session of the saving group of states. */
export abstract class SavingSession extends DataSession implements SavingStream {
  readonly direction = "saving";
  /** The device is in STOP_COPY: an end of the stream is the real one. Kept by the device. */
  final = false;
  readonly #precopyInfoV2: () => boolean;

  constructor(device: SessionDevice) {
    super(device);
    this.#precopyInfoV2 = device.precopyInfoV2;
  }

  read(bytes: number): Promise<Uint8Array> {
    const call = { syscall: "read", attempted: `read ${bytes} bytes of the state of '${this.device}'` };
    return this.turns.run(async () => {
      this.check(call);
      checkStreamRead(bytes, call);
      const { data, final } = await this.take(bytes, call);
      // What the header asks of drivers; mtty answers 0, and servers can say nothing else.
      if (data.byteLength === 0 && !final)
        refuse("ENOMSG", call, "ask for the pre-copy information, or go to STOP_COPY");
      return data;
    });
  }

  async precopyInfo(): Promise<PrecopyInfo> {
    const attempted = `ask how much pre-copy data of '${this.device}' there is`;
    const call = { syscall: "VFIO_MIG_GET_PRECOPY_INFO", attempted };
    this.check(call);
    if (this.final) refuse("EINVAL", call, "ask in a PRE_COPY state");
    return precopyInfoOf(await this.askPrecopyInfo(call), this.#precopyInfoV2(), call);
  }

  /** Up to `bytes` more, or none; `final`: the device was in STOP_COPY when it was asked. */
  protected abstract take(bytes: number, call: Call): Promise<{ data: Uint8Array; final: boolean }>;

  /** Returns struct vfio_precopy_info. */
  protected abstract askPrecopyInfo(call: Call): Promise<Uint8Array>;
}

/** The session of RESUMING. */
export abstract class ResumingSession extends DataSession implements ResumingStream {
  readonly direction = "resuming";

  /** All of it before another write's: two that overlap do not mix. */
  write(data: Uint8Array): Promise<void> {
    const call = { syscall: "write", attempted: `write ${data.byteLength} bytes of state to '${this.device}'` };
    return this.turns.run(async () => {
      this.check(call);
      for (let done = 0; done < data.byteLength; ) {
        const count = await this.give(data.subarray(done), call);
        if (count === 0) refuse("EIO", call, "reset the device: it takes none of them");
        done += count;
      }
    });
  }

  /** Hands over a first part of the data. Returns its bytes. */
  protected abstract give(data: Uint8Array, call: Call): Promise<number>;
}
