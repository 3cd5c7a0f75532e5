import { clearTail } from "../../bitmap/bits.js";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { FeatureTransport } from "../../host/device-feature.js";
import type { Call } from "../../host/iommufd-checks.js";
import type { Iova } from "../../memory/address.js";
import { isErrno, UapiError } from "../../uapi/errno.js";
import {
  type DeviceFeature,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
} from "../../uapi/vfio.js";
import {
  VFIO_USER_COMMAND,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
} from "../../uapi/vfio-user.js";
import type { Caller } from "./connection.js";
import { WrittenPages } from "./written-pages.js";

const HEAD = vfio_device_feature.size;
const NOTHING = new Uint8Array(0);

/** Bytes of bitmap in one answer: 32 GiB at 4 KiB. A longer range is asked for in pieces. */
const REPORT_BYTES = 2 ** 20;

interface Stretch {
  readonly iova: bigint;
  readonly length: bigint;
  readonly pageSize: number;
}

/** What the server was given of the client's memory, and what it has written there by messages. */
export interface NotedMappings {
  readonly mapped: Iterable<readonly [Iova, { readonly span: { readonly length: number } }]>;
  /** While the server's log is on. */
  written: WrittenPages | null;
}

/**
 * VFIO_USER_DEVICE_FEATURE. Where the kernel's structures have a pointer, the wire has the data itself.
 *
 * What the server writes by messages is noted here while its log is on: its own log may not have it.
 */
export class MessageFeatures implements FeatureTransport {
  readonly #connection: Caller;
  readonly #mappings: NotedMappings;

  constructor(connection: Caller, mappings: NotedMappings) {
    this.#connection = connection;
    this.#mappings = mappings;
  }

  async probe(feature: DeviceFeature): Promise<boolean> {
    try {
      await this.#send(feature, VFIO_DEVICE_FEATURE_PROBE, NOTHING);
      return true;
    } catch (error) {
      // ENOTTY is the kernel's; other servers say EINVAL, or that they don't know the command.
      if (this.#connection.failure !== undefined || !(error instanceof UapiError)) throw error;
      return false;
    }
  }

  async get(feature: DeviceFeature, structure: Uint8Array, _call: Call, bitmap?: DirtyBitmap): Promise<Uint8Array> {
    if (bitmap === undefined) return this.#send(feature, VFIO_DEVICE_FEATURE_GET, NOTHING, structure.byteLength);
    const { iova, length, page_size } = vfio_user_dma_logging_report.decode(structure);
    const piece = BigInt(REPORT_BYTES * 8) * page_size;
    for (let done = 0n; done < length; done += piece) {
      const rest = length - done;
      const stretch = { iova: iova + done, length: rest < piece ? rest : piece, pageSize: Number(page_size) };
      await this.#report(stretch, bitmap);
    }
    this.#mappings.written?.read(iova, iova + length - 1n, { into: bitmap, clear: true });
    return structure;
  }

  async set(feature: DeviceFeature, structure: Uint8Array, _call: Call, array?: Uint8Array): Promise<Uint8Array> {
    const head = array === undefined ? structure : structure.subarray(0, vfio_user_dma_logging_control.size);
    const request = Buffer.concat([head, array ?? NOTHING]);
    const { written } = this.#mappings;
    // From before the server begins: what it writes by messages as soon as it has is not to be missed.
    if (feature === "DMA_LOGGING_START") this.#mappings.written = new WrittenPages();
    try {
      const answer = await this.#send(feature, VFIO_DEVICE_FEATURE_SET, request, request.byteLength);
      if (feature === "DMA_LOGGING_STOP") this.#mappings.written = null;
      const answered = structure.slice();
      answered.set(answer.subarray(0, head.byteLength));
      return answered;
    } catch (error) {
      if (feature === "DMA_LOGGING_START") this.#mappings.written = written;
      throw error;
    }
  }

  async reset(_call: Call): Promise<void> {
    await this.#connection.call(VFIO_USER_COMMAND.DEVICE_RESET, "VFIO_USER_DEVICE_RESET", null);
  }

  /**
   * libvfio-user reports on nothing but exactly one region: it refuses a part of one, and answers nothing where there are
   * several. Of such a server the regions that touch the range are asked for.
   */
  async #report(stretch: Stretch, into: DirtyBitmap): Promise<void> {
    try {
      await this.#reportOne(stretch, into);
      return;
    } catch (error) {
      const isOther = isErrno(error, "EOPNOTSUPP") || isErrno(error, "ENOENT") || isErrno(error, "EPROTO");
      if (this.#connection.failure !== undefined || !isOther) throw error;
    }
    const { iova, length, pageSize } = stretch;
    for (const [start, { span }] of [...this.#mappings.mapped]) {
      const bytes = BigInt(span.length);
      if (start >= iova + length || start + bytes <= iova) continue;
      const whole = new DirtyBitmap({ iova: start, length: bytes, granule: pageSize });
      await this.#reportOne({ iova: start, length: bytes, pageSize }, whole);
      // What lies outside of the range is gone from the server's log: it is kept here until it is asked for.
      whole.forEachRun((first, count) => {
        this.#mappings.written?.add(start + BigInt(first) * BigInt(pageSize), count * pageSize);
      });
    }
  }

  async #reportOne({ iova, length, pageSize }: Stretch, into: DirtyBitmap): Promise<void> {
    const { size } = vfio_user_dma_logging_report;
    const bits = Number((length + BigInt(pageSize) - 1n) / BigInt(pageSize));
    const bytes = Math.ceil(bits / 64) * 8;
    const request = vfio_user_dma_logging_report.encode({ iova, length, page_size: BigInt(pageSize) });
    const answer = await this.#send("DMA_LOGGING_REPORT", VFIO_DEVICE_FEATURE_GET, request, size + bytes);
    const words = new Uint32Array(new SharedArrayBuffer(bytes));
    new Uint8Array(words.buffer).set(answer.subarray(size, size + bytes));
    // What a server sets behind the range is not what was asked.
    clearTail(words, bits);
    into.or(new DirtyBitmap({ iova, length, granule: pageSize }, words));
  }

  /** Returns the data behind struct vfio_device_feature. @param room bytes of it that the answer may have */
  async #send(feature: DeviceFeature, operation: number, data: Uint8Array, room = 0): Promise<Uint8Array> {
    const request = new Uint8Array(HEAD + data.byteLength);
    vfio_device_feature.encode({ argsz: HEAD + room, flags: VFIO_DEVICE_FEATURE[feature] | operation }, request);
    request.set(data, HEAD);
    const name = `VFIO_DEVICE_FEATURE_${feature}`;
    const answer = await this.#connection.call(VFIO_USER_COMMAND.DEVICE_FEATURE, name, request);
    return answer.subarray(HEAD);
  }
}
