import type { PrecopyInfo, ResumingStream, SavingStream } from "../../host/host.js";
import { EventFd } from "../../sys/eventfd.js";
import { setNonBlocking } from "../../sys/fd.js";
import { OpenFile } from "../../sys/open-file.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import { Lock } from "../../threads/lock.js";
import { isErrno, UapiError } from "../../uapi/errno.js";
import { VFIO_MIG_GET_PRECOPY_INFO, VFIO_PRECOPY_INFO_REINIT, vfio_precopy_info } from "../../uapi/vfio.js";

/*
 * The data transfer sessions of a device of this kernel: what is read from, or written to, the data_fd that a state change
 * returned (include/uapi/linux/vfio.h, struct vfio_precopy_info and the comment above it).
 *
 * The descriptor doesn't block. Only a driver that has nothing yet answers EAGAIN; then poll waits for it, and for an
 * eventfd by which closing wakes the waiter. Asking poll first would be wrong: at the temporary end of the pre-copy phase
 * mlx5 answers ENOMSG to a read, and poll nothing.
 */

/** No driver takes this long to have a piece of its state ready, or room for one. */
const STREAM_TIMEOUT_MS = 10_000;

/** A wait is cut into pieces of this many milliseconds: a thread that waits in poll holds up the end of the process. */
const WAIT_MS = 1_000;

/** Bytes that one read asks a driver for at most: what a caller says bounds memory only here. */
const MAX_READ = 16 * 2 ** 20;

/** What a stream needs to know of its device. */
export interface SessionOptions {
  /** For messages. */
  readonly device: string;
  /** VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 was opted in to: only then do the flags of struct vfio_precopy_info mean anything. */
  readonly precopyInfoV2: () => boolean;
  /** How long data, or room for data, is waited for. Default 10 s. */
  readonly timeoutMs?: number;
}

/** What both directions have in common: a descriptor, its waits, and its end. */
abstract class Session implements AsyncDisposable {
  protected readonly device: string;
  protected readonly file: OpenFile;
  readonly #poll: PollSet;
  readonly #wake: EventFd;
  readonly #timeoutMs: number;
  readonly #turns = new Lock();
  #ended: string | undefined;

  /** Takes over the descriptor. @throws UapiError; then the descriptor is closed */
  protected constructor(fd: number, events: number, { device, timeoutMs = STREAM_TIMEOUT_MS }: SessionOptions) {
    this.device = device;
    this.file = new OpenFile(fd, `the state of '${device}'`);
    this.#timeoutMs = timeoutMs;
    try {
      setNonBlocking(fd);
      this.#wake = EventFd.create();
    } catch (error) {
      void this.file[Symbol.asyncDispose]();
      throw error;
    }
    this.#poll = new PollSet([
      { fd, events },
      { fd: this.#wake.fd, events: POLLIN },
    ]);
  }

  /** The device left the states that this session belongs to: whoever waits is woken, and the descriptor closed. */
  async end(why: string): Promise<void> {
    if (this.#ended !== undefined) return;
    this.#ended = why;
    this.#wake.signal();
    // A waiter polls the eventfd; so it is closed after the waiter's turn.
    await this.#turns.run(async () => {
      await this.file[Symbol.asyncDispose]();
      this.#wake[Symbol.dispose]();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end(CLOSED);
    // Ended by the device, perhaps a moment ago: wait for that as well.
    await this.#turns.run(async () => {});
  }

  /** Makes a call that answers EAGAIN until there is data, or room; one caller at a time. */
  protected transfer(syscall: string, attempted: string, call: () => Promise<number>): Promise<number> {
    return this.#turns.run(async () => {
      const until = performance.now() + this.#timeoutMs;
      for (;;) {
        this.check(syscall, attempted);
        try {
          return await call();
        } catch (error) {
          if (!isErrno(error, "EAGAIN")) throw error;
        }
        const left = until - performance.now();
        if (left <= 0) {
          throw new UapiError("ETIMEDOUT", {
            syscall,
            attempted: `${attempted}: the driver had nothing to say for ${this.#timeoutMs} ms`,
            remedy: `reset '${this.device}'`,
          });
        }
        await this.#poll.waitOnThread(Math.ceil(Math.min(left, WAIT_MS)));
      }
    });
  }

  protected check(syscall: string, attempted: string): void {
    if (this.#ended === undefined) return;
    const code = this.#ended === CLOSED ? "EBADF" : "ENODEV";
    throw new UapiError(code, { syscall, attempted, remedy: this.#ended });
  }
}

const CLOSED = "the stream is closed";

/** The data_fd of the saving group of states. */
export class LinuxSavingStream extends Session implements SavingStream {
  readonly direction = "saving";
  /** The device is in STOP_COPY: an end of the stream is the real one. Kept by the device. */
  final = false;
  readonly #precopyInfoV2: () => boolean;

  constructor(fd: number, options: SessionOptions) {
    super(fd, POLLIN, options);
    this.#precopyInfoV2 = options.precopyInfoV2;
  }

  /** @throws UapiError besides: ETIMEDOUT for a driver that has nothing for 10 s, ENODEV once the device left the saving states */
  async read(bytes: number): Promise<Uint8Array> {
    const attempted = `read ${bytes} bytes of the state of '${this.device}'`;
    this.check("read", attempted);
    if (!Number.isSafeInteger(bytes) || bytes < 1) {
      throw new UapiError("EINVAL", { syscall: "read", attempted, remedy: "read 1 byte or more" });
    }
    const into = new Uint8Array(Math.min(bytes, MAX_READ));
    let final = this.final;
    const count = await this.transfer("read", attempted, () => {
      final = this.final;
      return this.file.read(into);
    });
    if (count === 0 && !final) {
      // What the header asks of drivers; mtty answers 0.
      throw new UapiError("ENOMSG", {
        syscall: "read",
        attempted,
        remedy: "ask for the pre-copy information, or go to STOP_COPY",
      });
    }
    return into.subarray(0, count);
  }

  async precopyInfo(): Promise<PrecopyInfo> {
    const attempted = `ask how much pre-copy data of '${this.device}' there is`;
    this.check(VFIO_MIG_GET_PRECOPY_INFO.name, attempted);
    const info = vfio_precopy_info.encode({ argsz: vfio_precopy_info.size });
    await this.file.ioctlOnThread(VFIO_MIG_GET_PRECOPY_INFO, info, () => attempted);
    const { flags, initial_bytes, dirty_bytes } = vfio_precopy_info.decode(info);
    return {
      initialBytes: Number(initial_bytes),
      dirtyBytes: Number(dirty_bytes),
      reinit: this.#precopyInfoV2() && (flags & VFIO_PRECOPY_INFO_REINIT) !== 0,
    };
  }
}

/** The data_fd of RESUMING. */
export class LinuxResumingStream extends Session implements ResumingStream {
  readonly direction = "resuming";

  constructor(fd: number, options: SessionOptions) {
    super(fd, POLLOUT, options);
  }

  async write(data: Uint8Array): Promise<void> {
    const attempted = `write ${data.byteLength} bytes of state to '${this.device}'`;
    this.check("write", attempted);
    for (let done = 0; done < data.byteLength; ) {
      const rest = data.subarray(done);
      const count = await this.transfer("write", attempted, () => this.file.write(rest));
      if (count === 0) {
        throw new UapiError("EIO", { syscall: "write", attempted: `${attempted}: the driver takes none of them` });
      }
      done += count;
    }
  }
}
