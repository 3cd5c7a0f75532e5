import type { RegionInfo } from "../../host/host.js";
import {
  VFIO_USER_DEFAULT_DATA_XFER,
  vfio_user_region_access,
  vfio_user_write_multi,
  vfio_user_write_multi_entry,
} from "../../uapi/vfio-user.js";
import type { Message, MessageSocket } from "../message-socket.js";
import { refusal, requestOf } from "./refusal.js";
import type { ServedDevice } from "./served-device.js";

/** Bytes of a region or of migration data in one message: max_data_xfer_size of this server. */
export const MAX_TRANSFER = VFIO_USER_DEFAULT_DATA_XFER;

const HEAD = vfio_user_region_access.size;
const OFFSET = vfio_user_region_access.offsetOf("offset");
const REGION = vfio_user_region_access.offsetOf("region");
const COUNT = vfio_user_region_access.offsetOf("count");

/** Registers are written by this many bytes at most. */
const REGISTER_BYTES = 8;

/** Bytes that an entry of VFIO_USER_REGION_WRITE_MULTI can write. */
const MULTI_BYTES = 8;

/** An access to a region, checked against its bounds. */
interface Access {
  readonly region: number;
  readonly offset: number;
  readonly count: number;
}

/**
 * Region reads and writes: what a guest's driver does all the time, so that nothing here is decoded twice, or allocated
 * without need.
 */
export class RegionAccess {
  readonly #device: ServedDevice;
  readonly #regions: readonly (RegionInfo | undefined)[];
  /** Where the last answer to a read was put together, and the part of it that the device fills. */
  #answer: Uint8Array = new Uint8Array(0);
  #data: Uint8Array = this.#answer;
  /** What a register is written with, by its size: memory that is used again, while no write is under way in a write. */
  readonly #registers = Array.from({ length: REGISTER_BYTES + 1 }, (_, bytes) => new Uint8Array(bytes));
  #writing = false;

  constructor(device: ServedDevice) {
    this.#device = device;
    const { regions } = device.model.info;
    const last = Math.max(...regions.map(({ index }) => index));
    this.#regions = Array.from({ length: last + 1 }, (_, index) => regions.find((info) => info.index === index));
  }

  /** VFIO_USER_REGION_READ */
  read({ payload }: Message, socket: MessageSocket): Uint8Array {
    const access = this.#access(payload, 0, "VFIO_USER_REGION_READ", "readable");
    const answer = socket.outgoing(HEAD + access.count);
    if (answer !== this.#answer) {
      this.#answer = answer;
      this.#data = answer.subarray(HEAD);
    }
    writeHead(access, answer);
    this.#device.contained.regionRead(access.region, access.offset, this.#data);
    return answer;
  }

  /** VFIO_USER_REGION_WRITE */
  write({ payload }: Message, socket: MessageSocket): Uint8Array {
    const access = this.#access(payload, 0, "VFIO_USER_REGION_WRITE", "writeable");
    const { region, offset, count } = access;
    if (payload.length !== HEAD + count) {
      throw refusal(
        "EINVAL",
        "VFIO_USER_REGION_WRITE",
        `write ${count} bytes, of which ${payload.byteLength - HEAD} came`,
        "send them all",
      );
    }
    // A copy: a model that does DMA by messages meanwhile receives into the memory that the payload lies in.
    if (count > REGISTER_BYTES || this.#writing) {
      this.#device.contained.regionWrite(region, offset, payload.slice(HEAD));
    } else {
      const data = this.#registers[count];
      for (let i = 0; i < count; i++) data[i] = payload[HEAD + i];
      this.#writing = true;
      try {
        this.#device.contained.regionWrite(region, offset, data);
      } finally {
        this.#writing = false;
      }
    }
    const answer = socket.outgoing(HEAD);
    writeHead(access, answer);
    return answer;
  }

  /** VFIO_USER_REGION_WRITE_MULTI: either all writes are possible, or none is done. */
  writeMulti({ payload }: Message): Uint8Array {
    const syscall = "VFIO_USER_REGION_WRITE_MULTI";
    const { wr_cnt } = requestOf(vfio_user_write_multi, payload, syscall);
    const { size: each } = vfio_user_write_multi_entry;
    const entries = (payload.byteLength - vfio_user_write_multi.size) / each;
    if (Number(wr_cnt) !== entries) {
      throw refusal("EINVAL", syscall, `do ${wr_cnt} writes, of which ${entries} came`, "send them all");
    }
    const request = payload.slice();
    const writes = Array.from({ length: entries }, (_, i) => {
      const at = vfio_user_write_multi.size + i * each;
      const access = this.#access(request, at, syscall, "writeable");
      if (access.count > MULTI_BYTES) {
        throw refusal("EINVAL", syscall, `write ${access.count} bytes at once`, `write ${MULTI_BYTES} at most`);
      }
      return { ...access, data: request.subarray(at + HEAD, at + HEAD + access.count) };
    });
    for (const { region, offset, data } of writes) this.#device.contained.regionWrite(region, offset, data);
    return vfio_user_write_multi.encode({ wr_cnt });
  }

  /** @throws UapiError EINVAL */
  #access(payload: Uint8Array, at: number, syscall: string, way: "readable" | "writeable"): Access {
    if (payload.length - at < HEAD) {
      throw refusal("EINVAL", syscall, `read a request of ${payload.byteLength} bytes`, `send ${HEAD} or more`);
    }
    const offset = u64(payload, at + OFFSET);
    const region = u32(payload, at + REGION);
    const count = u32(payload, at + COUNT);
    const info = this.#regions[region];
    if (info === undefined || offset + count > info.bytes || !info[way] || count > MAX_TRANSFER) {
      throw refusal(
        "EINVAL",
        syscall,
        `reach ${count} bytes at ${offset} of region ${region}`,
        info === undefined
          ? "there is no such region"
          : `it has ${info.bytes}, of which at most ${MAX_TRANSFER} at once`,
      );
    }
    return { region, offset, count };
  }
}

/** struct vfio_user_region_access at an answer's start, as it came in the request. */
function writeHead({ region, offset, count }: Access, answer: Uint8Array): void {
  putU32(answer, OFFSET, offset);
  putU32(answer, OFFSET + 4, Math.floor(offset / 2 ** 32));
  putU32(answer, REGION, region);
  putU32(answer, COUNT, count);
}

function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

/** Little-endian, whatever the alignment. */
function u32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}

/** Exact up to 2^53, and what is above is above every bound that it is compared with. */
function u64(bytes: Uint8Array, at: number): number {
  return u32(bytes, at + 4) * 2 ** 32 + u32(bytes, at);
}
