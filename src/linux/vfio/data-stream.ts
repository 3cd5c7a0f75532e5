import { ResumingSession, SavingSession, type SessionDevice } from "../../host/data-session.js";
import type { Call } from "../../host/iommufd-checks.js";
import { EventFd } from "../../sys/eventfd.js";
import { setNonBlocking } from "../../sys/fd.js";
import { OpenFile } from "../../sys/open-file.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import type { Lock } from "../../threads/lock.js";
import { isErrno, UapiError } from "../../uapi/errno.js";
import { VFIO_MIG_GET_PRECOPY_INFO, vfio_precopy_info } from "../../uapi/vfio.js";

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
export interface SessionOptions extends SessionDevice {
  /** How long data, or room for data, is waited for. Default 10 s. */
  readonly timeoutMs?: number;
}

/** A data_fd, the waits for it, and its end. */
class DataFile {
  readonly file: OpenFile;
  readonly #device: string;
  readonly #poll: PollSet;
  readonly #wake: EventFd;
  readonly #timeoutMs: number;

  /** Takes over the descriptor. @throws UapiError; then the descriptor is closed */
  constructor(fd: number, events: number, { device, timeoutMs = STREAM_TIMEOUT_MS }: SessionOptions) {
    this.#device = device;
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

  /** Makes a call that answers EAGAIN until there is data, or room. @param check refuses where the session has ended meanwhile */
  async transfer({ syscall, attempted }: Call, check: () => void, call: () => Promise<number>): Promise<number> {
    const until = performance.now() + this.#timeoutMs;
    for (;;) {
      check();
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
          remedy: `reset '${this.#device}'`,
        });
      }
      await this.#poll.waitOnThread(Math.ceil(Math.min(left, WAIT_MS)));
    }
  }

  /** Wakes who waits, and closes the descriptor. @param turns of those who wait: they poll the eventfd, so that it is closed after theirs */
  async close(turns: Lock): Promise<void> {
    this.#wake.signal();
    await turns.run(async () => {
      await this.file[Symbol.asyncDispose]();
      this.#wake[Symbol.dispose]();
    });
  }
}

/** The data_fd of the saving group of states. */
export class LinuxSavingStream extends SavingSession {
  readonly #data: DataFile;

  constructor(fd: number, options: SessionOptions) {
    super(options);
    this.#data = new DataFile(fd, POLLIN, options);
  }

  protected async take(bytes: number, call: Call): Promise<{ data: Uint8Array; final: boolean }> {
    const into = new Uint8Array(Math.min(bytes, MAX_READ));
    let { final } = this;
    const count = await this.#data.transfer(
      call,
      () => this.check(call),
      () => {
        final = this.final;
        return this.#data.file.read(into);
      },
    );
    return { data: into.subarray(0, count), final };
  }

  protected async askPrecopyInfo({ attempted }: Call): Promise<Uint8Array> {
    const info = vfio_precopy_info.encode({ argsz: vfio_precopy_info.size });
    await this.#data.file.ioctlOnThread(VFIO_MIG_GET_PRECOPY_INFO, info, () => attempted);
    return info;
  }

  protected override release(): Promise<void> {
    return this.#data.close(this.turns);
  }
}

/** The data_fd of RESUMING. */
export class LinuxResumingStream extends ResumingSession {
  readonly #data: DataFile;

  constructor(fd: number, options: SessionOptions) {
    super(options);
    this.#data = new DataFile(fd, POLLOUT, options);
  }

  protected give(data: Uint8Array, call: Call): Promise<number> {
    return this.#data.transfer(
      call,
      () => this.check(call),
      () => this.#data.file.write(data),
    );
  }

  protected override release(): Promise<void> {
    return this.#data.close(this.turns);
  }
}
