import { ResumingSession, SavingSession, type SessionDevice } from "../../host/data-session.js";
import type { Call } from "../../host/iommufd-checks.js";
import { UapiError } from "../../uapi/errno.js";
import { vfio_precopy_info } from "../../uapi/vfio.js";
import { DIRTMAP_COMMAND, VFIO_USER_COMMAND, vfio_user_mig_data } from "../../uapi/vfio-user.js";
import type { Connection } from "./connection.js";

const HEAD = vfio_user_mig_data.size;

/** What a stream needs of its device. */
export interface SessionOptions extends SessionDevice {
  readonly connection: Connection;
  /** The server has Dirtmap's own command for pre-copy information. */
  readonly hasPrecopyInfo: boolean;
  /** VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, for servers that tell nothing of pre-copy. */
  readonly dataSize: () => Promise<number>;
  /** An errno of the server with what is known besides. */
  readonly explained: (error: UapiError) => Promise<Error>;
}

/** VFIO_USER_MIG_DATA_READ in the saving group of states. */
export class VfioUserSavingStream extends SavingSession {
  readonly #options: SessionOptions;
  /** The last read got less than it asked for: the server has no more at the moment. */
  #short = false;

  constructor(options: SessionOptions) {
    super(options);
    this.#options = options;
  }

  protected async take(bytes: number): Promise<{ data: Uint8Array; final: boolean }> {
    const { connection } = this.#options;
    const { final } = this;
    const isAtEnd = this.#short && !final;
    this.#short = false;
    if (isAtEnd) return { data: new Uint8Array(0), final };
    const size = Math.min(bytes, connection.agreement.maxTransfer);
    const request = vfio_user_mig_data.encode({ argsz: HEAD + size, size });
    const answer = await connection.call(VFIO_USER_COMMAND.MIG_DATA_READ, "VFIO_USER_MIG_DATA_READ", request);
    const came = vfio_user_mig_data.decode(answer).size;
    this.#short = came > 0 && came < size;
    return { data: answer.subarray(HEAD, HEAD + came), final };
  }

  protected askPrecopyInfo(call: Call): Promise<Uint8Array> {
    const { connection, hasPrecopyInfo, dataSize } = this.#options;
    return this.turns.run(async () => {
      this.check(call);
      const request = vfio_precopy_info.encode({ argsz: vfio_precopy_info.size });
      // The specification has no message for it: of another server all of the state may have changed.
      const answer = hasPrecopyInfo
        ? await connection.call(DIRTMAP_COMMAND.PRECOPY_INFO, call.syscall, request)
        : vfio_precopy_info.encode({ dirty_bytes: BigInt(await dataSize()) });
      this.#short = false;
      return answer;
    });
  }
}

/** VFIO_USER_MIG_DATA_WRITE in RESUMING. */
export class VfioUserResumingStream extends ResumingSession {
  readonly #options: SessionOptions;

  constructor(options: SessionOptions) {
    super(options);
    this.#options = options;
  }

  protected async give(data: Uint8Array, { attempted }: Call): Promise<number> {
    const { connection, explained } = this.#options;
    const syscall = "VFIO_USER_MIG_DATA_WRITE";
    const part = data.subarray(0, connection.agreement.maxTransfer);
    const request = new Uint8Array(HEAD + part.byteLength);
    vfio_user_mig_data.encode({ argsz: request.byteLength, size: part.byteLength }, request);
    request.set(part, HEAD);
    try {
      await connection.call(VFIO_USER_COMMAND.MIG_DATA_WRITE, syscall, request);
    } catch (error) {
      if (connection.failure !== undefined || !(error instanceof UapiError)) throw error;
      throw new UapiError(error.code, { syscall, attempted, cause: await explained(error) });
    }
    return part.byteLength;
  }
}
