import type { SavingStream } from "../../host/host.js";
import { isErrno } from "../../uapi/errno.js";
import { VFIO_PRECOPY_INFO_REINIT, vfio_precopy_info } from "../../uapi/vfio.js";
import { vfio_user_mig_data } from "../../uapi/vfio-user.js";
import type { Message, MessageSocket } from "../message-socket.js";
import { refusal, sizedRequestOf } from "./refusal.js";
import { MAX_TRANSFER } from "./region-access.js";
import type { ServedDevice } from "./served-device.js";

const READ = "VFIO_USER_MIG_DATA_READ";
const WRITE = "VFIO_USER_MIG_DATA_WRITE";
const HEAD = vfio_user_mig_data.size;

/**
 * VFIO_USER_MIG_DATA_READ, and what the kernel has as an ioctl on the data_fd. As much as was asked for, or less: then there
 * is no more at the moment.
 *
 * A device that runs always has changes, and a client that reads until there is nothing more would read for ever. So a read
 * that came to the end closes a round; the next one looks for what has changed since.
 */
export class MigrationReader {
  readonly #device: ServedDevice;
  #atEnd: SavingStream | null = null;

  constructor(device: ServedDevice) {
    this.#device = device;
  }

  async read({ payload }: Message, socket: MessageSocket): Promise<Uint8Array> {
    const { argsz, size } = sizedRequestOf(vfio_user_mig_data, payload, READ);
    const refuse = (remedy: string) => refusal("EINVAL", READ, `read ${size} bytes of device state`, remedy);
    if (size > MAX_TRANSFER) throw refuse(`read at most ${MAX_TRANSFER} at a time`);
    if (argsz - HEAD < size) throw refuse(`give room for ${HEAD + size} bytes`);
    const stream = this.#stream(refuse("go to a saving state first"));
    if (this.#atEnd === stream) await lookForChanges(stream);
    const reply = socket.outgoing(HEAD + size);
    let done = 0;
    while (done < size) {
      const data = await nextOf(stream, size - done);
      if (data.byteLength === 0) break;
      reply.set(data, HEAD + done);
      done += data.byteLength;
    }
    this.#atEnd = done < size ? stream : null;
    vfio_user_mig_data.encode({ argsz: HEAD + done, size: done }, reply);
    // libvfio-user's clients take no answer that is shorter than what they asked for.
    return reply.fill(0, HEAD + done);
  }

  /** Dirtmap's own: VFIO_MIG_GET_PRECOPY_INFO. It looks for changes, where all has been read. */
  async precopyInfo({ payload }: Message): Promise<Uint8Array> {
    const syscall = "VFIO_MIG_GET_PRECOPY_INFO";
    sizedRequestOf(vfio_precopy_info, payload, syscall);
    const stream = this.#stream(
      refusal("EINVAL", syscall, "ask how much pre-copy data there is", "go to a PRE_COPY state first"),
    );
    const { initialBytes, dirtyBytes, reinit } = await stream.precopyInfo();
    this.#atEnd = null;
    return vfio_precopy_info.encode({
      argsz: vfio_precopy_info.size,
      flags: reinit ? VFIO_PRECOPY_INFO_REINIT : 0,
      initial_bytes: BigInt(initialBytes),
      dirty_bytes: BigInt(dirtyBytes),
    });
  }

  #stream(otherwise: Error): SavingStream {
    const { stream } = this.#device.driver;
    if (stream?.direction !== "saving") throw otherwise;
    return stream;
  }
}

/** VFIO_USER_MIG_DATA_WRITE */
export async function writeMigrationData({ payload }: Message, { driver }: ServedDevice): Promise<null> {
  const { size } = sizedRequestOf(vfio_user_mig_data, payload, WRITE);
  const refuse = (remedy: string) => refusal("EINVAL", WRITE, `write ${size} bytes of device state`, remedy);
  if (size > MAX_TRANSFER) throw refuse(`write at most ${MAX_TRANSFER} at a time`);
  if (payload.byteLength !== HEAD + size) throw refuse(`${payload.byteLength - HEAD} bytes came`);
  const { stream } = driver;
  if (stream?.direction !== "resuming") throw refuse("go to RESUMING first");
  await stream.write(payload.subarray(HEAD));
  return null;
}

/** The next data; none at the end of the stream, for the moment or for good. */
async function nextOf(stream: SavingStream, bytes: number): Promise<Uint8Array> {
  try {
    return await stream.read(bytes);
  } catch (error) {
    if (isErrno(error, "ENOMSG")) return new Uint8Array(0);
    throw error;
  }
}

/** In a PRE_COPY state; in STOP_COPY all there is to say is said. */
async function lookForChanges(stream: SavingStream): Promise<void> {
  try {
    await stream.precopyInfo();
  } catch (error) {
    if (!isErrno(error, "EINVAL")) throw error;
  }
}
