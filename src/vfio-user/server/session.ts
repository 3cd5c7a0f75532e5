import { DirtmapError } from "../../errors.js";
import { type ERRNO, UapiError } from "../../uapi/errno.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  vfio_user_device_info,
  vfio_user_region_access,
  vfio_user_version,
} from "../../uapi/vfio-user.js";
import { closeFds, type Message, type MessageSocket } from "../message-socket.js";
import type { ServedDevice } from "./served-device.js";

/** What a command is answered with. */
export interface Answer {
  readonly payload: Uint8Array | null;
  readonly fds?: readonly number[];
}

type Handler = (message: Message) => Answer | Promise<Answer>;

const NOTHING: Answer = { payload: null };

/** Bits of vfio_device_info.flags (include/uapi/linux/vfio.h). */
const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
const VFIO_DEVICE_FLAGS_PCI = 1 << 1;

/** VFIO_PCI_NUM_REGIONS and VFIO_PCI_NUM_IRQS: a PCI device has them all, some of size or count 0. */
const PCI_REGIONS = 9;
const PCI_IRQS = 5;

/**
 * One client's connection: negotiates the version, then answers commands in the order in which they come. A command that
 * fails is answered with an errno and changes nothing; a message that can't be understood ends the connection, never the
 * server.
 */
export class Session {
  readonly #socket: MessageSocket;
  readonly #device: ServedDevice;
  readonly #handlers: ReadonlyMap<number, Handler>;
  #negotiated = false;

  constructor(socket: MessageSocket, device: ServedDevice) {
    this.#socket = socket;
    this.#device = device;
    this.#handlers = new Map<number, Handler>([
      [VFIO_USER_COMMAND.VERSION, (message) => this.#version(message)],
      [VFIO_USER_COMMAND.DEVICE_GET_INFO, (message) => this.#deviceInfo(message)],
      [VFIO_USER_COMMAND.REGION_READ, (message) => this.#regionRead(message)],
      [VFIO_USER_COMMAND.REGION_WRITE, (message) => this.#regionWrite(message)],
      [VFIO_USER_COMMAND.DEVICE_RESET, () => this.#reset()],
    ]);
  }

  /**
   * Answers what has come. Returns false when the connection is over.
   * @throws DirtmapError `PROTOCOL`; UapiError of the socket: the connection is of no more use
   */
  async serve(): Promise<boolean> {
    for (;;) {
      const message = this.#socket.receive();
      if (message === undefined) return true;
      if (message === "closed") return false;
      try {
        const answer = this.#handle(message);
        this.#reply(message, answer instanceof Promise ? await answer : answer);
      } catch (error) {
        if (!(error instanceof UapiError)) throw error;
        if (!message.noReply) this.#socket.sendError(message, error.errno);
      } finally {
        closeFds(message.fds);
      }
    }
  }

  #handle(message: Message): Answer | Promise<Answer> {
    if (message.isReply) throw new DirtmapError("a reply to nothing", { code: "PROTOCOL" });
    if (!this.#negotiated && message.command !== VFIO_USER_COMMAND.VERSION) {
      throw new DirtmapError("a command before the version", { code: "PROTOCOL" });
    }
    const handler = this.#handlers.get(message.command);
    if (handler === undefined) {
      throw new UapiError("ENOTTY", { syscall: `command ${message.command}`, attempted: "handle an unknown command" });
    }
    return handler(message);
  }

  #reply(message: Message, { payload, fds }: Answer): void {
    if (!message.noReply) this.#socket.sendReply(message, payload, fds);
  }

  #version({ payload }: Message): Answer {
    if (payload.byteLength < vfio_user_version.size) throw refusal("VFIO_USER_VERSION", "EINVAL");
    const { major, minor } = vfio_user_version.decode(payload);
    if (major !== VFIO_USER_MAJOR) throw refusal("VFIO_USER_VERSION", "ENOTSUPP");
    this.#negotiated = true;
    const json = new TextEncoder().encode(`${JSON.stringify({ capabilities: {} })}\0`);
    const answer = new Uint8Array(vfio_user_version.size + json.byteLength);
    vfio_user_version.encode({ major, minor: Math.min(minor, VFIO_USER_MINOR) }, answer);
    answer.set(json, vfio_user_version.size);
    return { payload: answer };
  }

  #deviceInfo(_message: Message): Answer {
    return {
      payload: vfio_user_device_info.encode({
        argsz: vfio_user_device_info.size,
        flags: VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI,
        num_regions: PCI_REGIONS,
        num_irqs: PCI_IRQS,
      }),
    };
  }

  #regionRead({ payload }: Message): Answer {
    const { offset, region, count } = this.#access(payload, "VFIO_USER_REGION_READ");
    const answer = new Uint8Array(vfio_user_region_access.size + count);
    answer.set(payload.subarray(0, vfio_user_region_access.size));
    this.#device.model.regionRead(region, offset, answer.subarray(vfio_user_region_access.size));
    return { payload: answer };
  }

  #regionWrite({ payload }: Message): Answer {
    const { offset, region, count } = this.#access(payload, "VFIO_USER_REGION_WRITE");
    const data = payload.subarray(vfio_user_region_access.size);
    if (data.byteLength !== count) throw refusal("VFIO_USER_REGION_WRITE", "EINVAL");
    this.#device.model.regionWrite(region, offset, data);
    return { payload: payload.slice(0, vfio_user_region_access.size) };
  }

  #access(payload: Uint8Array, syscall: string): { offset: number; region: number; count: number } {
    if (payload.byteLength < vfio_user_region_access.size) throw refusal(syscall, "EINVAL");
    const { offset, region, count } = vfio_user_region_access.decode(payload);
    const info = this.#device.model.info.regions.find(({ index }) => index === region);
    if (info === undefined || offset + BigInt(count) > BigInt(info.bytes)) throw refusal(syscall, "EINVAL");
    return { offset: Number(offset), region, count };
  }

  async #reset(): Promise<Answer> {
    await this.#device.reset();
    return NOTHING;
  }
}

function refusal(syscall: string, code: keyof typeof ERRNO): UapiError {
  return new UapiError(code, { syscall, attempted: "handle a message" });
}
