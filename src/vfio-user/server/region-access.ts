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

  constructor(device: ServedDevice) {
    this.#device = device;
    const { regions } = device.model.info;
    const last = Math.max(...regions.map(({ index }) => index));
    this.#regions = Array.from({ length: last + 1 }, (_, index) => regions.find((info) => info.index === index));
  }

  /** VFIO_USER_REGION_READ */
  read({ payload }: Message, socket: MessageSocket): Uint8Array {
    const { region, offset, count } = this.#access(payload, "VFIO_USER_REGION_READ", "readable");
    const answer = socket.outgoing(HEAD + count);
    answer.set(payload.byteLength === HEAD ? payload : payload.subarray(0, HEAD));
    const data = answer.subarray(HEAD);
    this.#device.model.regionRead(region, offset, data);
    return answer;
  }

  /** VFIO_USER_REGION_WRITE */
  write({ payload }: Message, socket: MessageSocket): Uint8Array {
    const { region, offset, count } = this.#access(payload, "VFIO_USER_REGION_WRITE", "writeable");
    if (payload.byteLength !== HEAD + count) {
      throw refusal(
        "EINVAL",
        "VFIO_USER_REGION_WRITE",
        `write ${count} bytes, of which ${payload.byteLength - HEAD} came`,
        "send them all",
      );
    }
    // A copy: a model that does DMA by messages meanwhile receives into the memory that the payload lies in.
    const request = payload.slice();
    this.#device.model.regionWrite(region, offset, request.subarray(HEAD));
    const answer = socket.outgoing(HEAD);
    answer.set(request.subarray(0, HEAD));
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
      const access = this.#access(request.subarray(at), syscall, "writeable");
      if (access.count > MULTI_BYTES) {
        throw refusal("EINVAL", syscall, `write ${access.count} bytes at once`, `write ${MULTI_BYTES} at most`);
      }
      return { ...access, data: request.subarray(at + HEAD, at + HEAD + access.count) };
    });
    for (const { region, offset, data } of writes) this.#device.model.regionWrite(region, offset, data);
    return vfio_user_write_multi.encode({ wr_cnt });
  }

  /** @throws UapiError EINVAL */
  #access(payload: Uint8Array, syscall: string, way: "readable" | "writeable"): Access {
    if (payload.byteLength < HEAD) {
      throw refusal("EINVAL", syscall, `read a request of ${payload.byteLength} bytes`, `send ${HEAD} or more`);
    }
    const offset = u64(payload, OFFSET);
    const region = u32(payload, REGION);
    const count = u32(payload, COUNT);
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

/** Little-endian, whatever the alignment. */
function u32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}

/** Exact up to 2^53, and what is above is above every bound that it is compared with. */
function u64(bytes: Uint8Array, at: number): number {
  return u32(bytes, at + 4) * 2 ** 32 + u32(bytes, at);
}
