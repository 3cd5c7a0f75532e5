import type { PrecopyInfo, ResumingStream, SavingStream } from "../../host/host.js";
import { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import { VFIO_PRECOPY_INFO_REINIT, vfio_precopy_info } from "../../uapi/vfio.js";
import { DIRTMAP_COMMAND, VFIO_USER_COMMAND, vfio_user_mig_data } from "../../uapi/vfio-user.js";
import type { Connection } from "./connection.js";

const HEAD = vfio_user_mig_data.size;
const PRECOPY_INFO = "VFIO_MIG_GET_PRECOPY_INFO";
const CLOSED = "the stream is closed";

/** What a stream needs of its device. */
export interface SessionOptions {
  /** For messages. */
  readonly device: string;
  readonly connection: Connection;
  readonly precopyInfoV2: () => boolean;
  /** The server has Dirtmap's own command for pre-copy information. */
  readonly hasPrecopyInfo: boolean;
  /** VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, for servers that tell nothing of pre-copy. */
  readonly dataSize: () => Promise<number>;
  /** An errno of the server with what is known besides. */
  readonly explained: (error: UapiError) => Promise<Error>;
}

/** What both directions have in common: transfers one at a time, and their end. */
abstract class Session implements AsyncDisposable {
  protected readonly options: SessionOptions;
  protected readonly turns = new Lock();
  #ended: string | undefined;

  constructor(options: SessionOptions) {
    this.options = options;
  }

  /** The device has left the states that this session belongs to. */
  end(why: string): void {
    this.#ended ??= why;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.end(CLOSED);
  }

  protected check(syscall: string, attempted: string): void {
    if (this.#ended === undefined) return;
    const code = this.#ended === CLOSED ? "EBADF" : "ENODEV";
    throw new UapiError(code, { syscall, attempted, remedy: this.#ended });
  }
}

/** VFIO_USER_MIG_DATA_READ in the saving group of states. */
export class VfioUserSavingStream extends Session implements SavingStream {
  readonly direction = "saving";
  /** The device is in STOP_COPY: an end of the stream is the real one. Kept by the device. */
  final = false;
  /** The last read got less than it asked for: the server has no more at the moment. */
  #short = false;

  read(bytes: number): Promise<Uint8Array> {
    const syscall = "VFIO_USER_MIG_DATA_READ";
    const { device, connection } = this.options;
    const attempted = `read ${bytes} bytes of the state of '${device}'`;
    return this.turns.run(async () => {
      this.check(syscall, attempted);
      if (!Number.isSafeInteger(bytes) || bytes < 1) {
        throw new UapiError("EINVAL", { syscall, attempted, remedy: "read 1 byte or more" });
      }
      const final = this.final;
      const isAtEnd = this.#short && !final;
      this.#short = false;
      if (isAtEnd) throw this.#temporaryEnd(syscall, attempted);
      const size = Math.min(bytes, connection.agreement.maxTransfer);
      const request = vfio_user_mig_data.encode({ argsz: HEAD + size, size });
      const answer = await connection.call(VFIO_USER_COMMAND.MIG_DATA_READ, syscall, request);
      const came = vfio_user_mig_data.decode(answer).size;
      if (came === 0 && !final) throw this.#temporaryEnd(syscall, attempted);
      this.#short = came < size;
      return answer.subarray(HEAD, HEAD + came);
    });
  }

  precopyInfo(): Promise<PrecopyInfo> {
    const { device, connection, precopyInfoV2, hasPrecopyInfo, dataSize } = this.options;
    const attempted = `ask how much pre-copy data of '${device}' there is`;
    return this.turns.run(async () => {
      this.check(PRECOPY_INFO, attempted);
      if (this.final) {
        throw new UapiError("EINVAL", { syscall: PRECOPY_INFO, attempted, remedy: "ask in a PRE_COPY state" });
      }
      if (!hasPrecopyInfo) {
        // The specification has no message for it: of another server all of the state may have changed.
        this.#short = false;
        return { initialBytes: 0, dirtyBytes: await dataSize(), reinit: false };
      }
      const request = vfio_precopy_info.encode({ argsz: vfio_precopy_info.size });
      const answer = await connection.call(DIRTMAP_COMMAND.PRECOPY_INFO, PRECOPY_INFO, request);
      this.#short = false;
      const { flags, initial_bytes, dirty_bytes } = vfio_precopy_info.decode(answer);
      return {
        initialBytes: Number(initial_bytes),
        dirtyBytes: Number(dirty_bytes),
        reinit: precopyInfoV2() && (flags & VFIO_PRECOPY_INFO_REINIT) !== 0,
      };
    });
  }

  #temporaryEnd(syscall: string, attempted: string): UapiError {
    const remedy = "ask for the pre-copy information, or go to STOP_COPY";
    return new UapiError("ENOMSG", { syscall, attempted, remedy });
  }
}

/** VFIO_USER_MIG_DATA_WRITE in RESUMING. */
export class VfioUserResumingStream extends Session implements ResumingStream {
  readonly direction = "resuming";

  write(data: Uint8Array): Promise<void> {
    const syscall = "VFIO_USER_MIG_DATA_WRITE";
    const { device, connection, explained } = this.options;
    const attempted = `write ${data.byteLength} bytes of state to '${device}'`;
    return this.turns.run(async () => {
      this.check(syscall, attempted);
      const most = connection.agreement.maxTransfer;
      for (let done = 0; done < data.byteLength; done += most) {
        const part = data.subarray(done, done + most);
        const request = new Uint8Array(HEAD + part.byteLength);
        vfio_user_mig_data.encode({ argsz: request.byteLength, size: part.byteLength }, request);
        request.set(part, HEAD);
        try {
          await connection.call(VFIO_USER_COMMAND.MIG_DATA_WRITE, syscall, request);
        } catch (error) {
          if (connection.failure !== undefined || !(error instanceof UapiError)) throw error;
          throw new UapiError(error.code, { syscall, attempted, cause: await explained(error) });
        }
      }
    });
  }
}
