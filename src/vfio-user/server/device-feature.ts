import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { flagsOf, stateOf } from "../../host/device-feature.js";
import { checkDmaLoggingRange, MAX_LOGGED_RANGES } from "../../host/dma-logging-checks.js";
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_DEVICE_STATE,
  vfio_device_feature,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
} from "../../uapi/vfio.js";
import {
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_USER_COMMAND,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
} from "../../uapi/vfio-user.js";
import type { Message, MessageSocket } from "../message-socket.js";
import type { Answer } from "./answer.js";
import { bitmapBytes, bitmapOver, MAX_BITMAP_BYTES } from "./bitmap.js";
import type { Mover } from "./custody.js";
import type { DmaLog, DmaLogUser } from "./dma-logging.js";
import { refusal, requestOf } from "./refusal.js";
import type { ServedDevice } from "./served-device.js";

const GET = VFIO_DEVICE_FEATURE_GET;
const SET = VFIO_DEVICE_FEATURE_SET;
const PROBE = VFIO_DEVICE_FEATURE_PROBE;

/** What a feature is given to do its work with. */
interface Call<Device> {
  readonly device: Device;
  readonly user: DmaLogUser & Mover;
  readonly socket: MessageSocket;
  /** What the client has room for behind struct vfio_device_feature. */
  readonly room: number;
  /** What came behind struct vfio_device_feature; a copy. */
  readonly data: Uint8Array;
}

interface Feature<Device> {
  /** VFIO_DEVICE_FEATURE_GET and _SET, as far as it has them. */
  readonly operations: number;
  /** Bytes that the client must have room for. */
  readonly minBytes: number;
  supported(device: Device): boolean;
  /** Returns the whole reply for a GET; null for a SET whose reply is its request. */
  run(call: Call<Device>, operation: number, head: Uint8Array): Promise<Uint8Array | null>;
}

const migrates = ({ model }: ServedDevice) => model.info.migration !== null;

/** A device with a log, whoever keeps it. */
interface Logged {
  readonly logging: DmaLog;
}

const logs = ({ logging }: Logged) => logging.isSupported;

/** DMA logging. */
export const LOG_FEATURES: ReadonlyMap<number, Feature<Logged>> = new Map<number, Feature<Logged>>([
  [
    VFIO_DEVICE_FEATURE.DMA_LOGGING_START,
    { operations: SET, minBytes: vfio_user_dma_logging_control.size, supported: logs, run: startLogging },
  ],
  [
    VFIO_DEVICE_FEATURE.DMA_LOGGING_STOP,
    {
      operations: SET,
      minBytes: 0,
      supported: logs,
      async run({ device, user }) {
        await device.logging.stop(user);
        return null;
      },
    },
  ],
  [
    VFIO_DEVICE_FEATURE.DMA_LOGGING_REPORT,
    { operations: GET, minBytes: vfio_user_dma_logging_report.size, supported: logs, run: reportLogging },
  ],
]);

/** Those of a device that this server serves. */
export const FEATURES: ReadonlyMap<number, Feature<ServedDevice>> = new Map<number, Feature<ServedDevice>>([
  ...LOG_FEATURES,
  [
    VFIO_DEVICE_FEATURE.MIGRATION,
    {
      operations: GET,
      minBytes: vfio_device_feature_migration.size,
      supported: migrates,
      async run({ device }, _operation, head) {
        return joined(head, vfio_device_feature_migration.encode({ flags: flagsOf(device.driver.support()) }));
      },
    },
  ],
  [
    VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE,
    {
      operations: GET | SET,
      minBytes: vfio_device_feature_mig_state.size,
      supported: migrates,
      async run({ device, data, user }, operation, head) {
        if (operation === GET) {
          const device_state = VFIO_DEVICE_STATE[device.driver.state];
          return joined(head, vfio_device_feature_mig_state.encode({ device_state, data_fd: -1 }));
        }
        const { device_state } = requestOf(vfio_device_feature_mig_state, data, "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
        const next = stateOf(device_state);
        if (next === undefined) {
          throw refusal(
            "EINVAL",
            "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
            `go to state ${device_state}`,
            "there is none",
          );
        }
        await device.movement.setState(next, user);
        return null;
      },
    },
  ],
  [
    VFIO_DEVICE_FEATURE.MIG_DATA_SIZE,
    {
      operations: GET,
      minBytes: vfio_device_feature_mig_data_size.size,
      supported: migrates,
      async run({ device }, _operation, head) {
        const stop_copy_length = BigInt(await device.driver.dataSize());
        return joined(head, vfio_device_feature_mig_data_size.encode({ stop_copy_length }));
      },
    },
  ],
  [
    VFIO_DEVICE_FEATURE.MIG_PRECOPY_INFOv2,
    {
      operations: SET,
      minBytes: 0,
      supported: ({ model }) => model.info.migration?.preCopy === true,
      async run({ device }) {
        device.driver.enablePrecopyInfoV2();
        return null;
      },
    },
  ],
]);

/**
 * VFIO_USER_DEVICE_FEATURE, checked in the order in which vfio_ioctl_device_feature() does, with its errnos: ENOTTY for a
 * feature that the device lacks.
 */
export async function deviceFeature<Device>(
  { payload }: Message,
  features: ReadonlyMap<number, Feature<Device>>,
  { device, user, socket }: { device: Device; user: DmaLogUser & Mover; socket: MessageSocket },
): Promise<Answer> {
  const syscall = "VFIO_USER_DEVICE_FEATURE";
  const { argsz, flags } = requestOf(vfio_device_feature, payload, syscall);
  const refuse = (remedy: string) =>
    refusal("EINVAL", syscall, `use a feature with flags 0x${flags.toString(16)}`, remedy);
  const head = vfio_device_feature.size;
  if (argsz < head) throw refuse(`give room for ${head} bytes or more`);
  if ((flags & ~(VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE)) !== 0) throw refuse("they have no meaning");
  const wanted = flags & (GET | SET);
  const probes = (flags & PROBE) !== 0;
  if (!probes && wanted === (GET | SET)) throw refuse("GET and SET exclude each other, but for a PROBE");
  const feature = features.get(flags & VFIO_DEVICE_FEATURE_MASK);
  if (feature === undefined || !feature.supported(device)) {
    throw refusal("ENOTTY", syscall, `use feature ${flags & VFIO_DEVICE_FEATURE_MASK}`, "this device lacks it");
  }
  if ((wanted & ~feature.operations) !== 0) throw refuse("the feature has no such operation");
  const request = payload.slice();
  if (probes) return request;
  if (wanted === 0) throw refuse("give GET, SET or PROBE");
  if (argsz - head < feature.minBytes) throw refuse(`give room for ${head + feature.minBytes} bytes or more`);
  const call = { device, user, socket, room: argsz - head, data: request.subarray(head) };
  return (await feature.run(call, wanted, request.subarray(0, head))) ?? request;
}

/** True for one who only asks whether the device has a feature: VFIO_DEVICE_FEATURE_PROBE. */
export function isProbe({ command, payload }: Message): boolean {
  if (command !== VFIO_USER_COMMAND.DEVICE_FEATURE || payload.byteLength < vfio_device_feature.size) return false;
  return (vfio_device_feature.decode(payload).flags & PROBE) !== 0;
}

/** The reply to a GET: the request's head, with the whole reply's size as its argsz, and the data. */
function joined(head: Uint8Array, data: Uint8Array): Uint8Array {
  const reply = new Uint8Array(head.byteLength + data.byteLength);
  reply.set(head);
  reply.set(data, head.byteLength);
  setArgsz(reply);
  return reply;
}

function setArgsz(reply: Uint8Array): void {
  new DataView(reply.buffer, reply.byteOffset).setUint32(vfio_device_feature.offsetOf("argsz"), reply.byteLength, true);
}

async function startLogging({ device, user, data }: Call<Logged>): Promise<null> {
  const syscall = "VFIO_DEVICE_FEATURE_DMA_LOGGING_START";
  const { page_size, num_ranges } = requestOf(vfio_user_dma_logging_control, data, syscall);
  const { size: each } = vfio_device_feature_dma_logging_range;
  const { size: head } = vfio_user_dma_logging_control;
  if (num_ranges > MAX_LOGGED_RANGES) {
    throw refusal(
      "E2BIG",
      syscall,
      `log ${num_ranges} ranges`,
      `give at most ${MAX_LOGGED_RANGES}: merge them, outwards`,
    );
  }
  if (data.byteLength < head + num_ranges * each) {
    throw refusal("EINVAL", syscall, `log ${num_ranges} ranges, which did not all come`, "send them all");
  }
  const ranges = Array.from({ length: num_ranges }, (_, i) =>
    vfio_device_feature_dma_logging_range.decode(data, head + i * each),
  );
  const granule = await device.logging.start(asNumber(page_size, syscall), ranges, user);
  new DataView(data.buffer, data.byteOffset).setBigUint64(
    vfio_user_dma_logging_control.offsetOf("page_size"),
    BigInt(granule),
    true,
  );
  return null;
}

async function reportLogging(
  { device, user, data, room, socket }: Call<Logged>,
  _operation: number,
  head: Uint8Array,
): Promise<Uint8Array> {
  const syscall = "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT";
  const { iova, length, page_size } = requestOf(vfio_user_dma_logging_report, data, syscall);
  const call = { syscall, attempted: `read the log of ${length} bytes at ${iova} by ${page_size}` };
  const refuse = (remedy: string) => refusal("EINVAL", syscall, call.attempted, remedy);
  const pageSize = asNumber(page_size, syscall);
  checkDmaLoggingRange({ iova, length, pageSize }, call);
  const at = head.byteLength + vfio_user_dma_logging_report.size;
  const bytes = bitmapBytes(length, pageSize);
  if (bytes > MAX_BITMAP_BYTES) throw refuse(`ask for less at a time: ${MAX_BITMAP_BYTES} bytes of bitmap`);
  if (room < vfio_user_dma_logging_report.size + bytes) throw refuse(`give room for ${at + bytes} bytes`);
  const reply = socket.outgoing(at + bytes);
  reply.set(head);
  reply.set(data.subarray(0, vfio_user_dma_logging_report.size), head.byteLength);
  setArgsz(reply);
  // A length of 0 has no bitmap; everything else is checked all the same.
  const into =
    length === 0n
      ? new DirtyBitmap({ iova, length: 1n, granule: pageSize })
      : bitmapOver(reply, at, { iova, length, granule: pageSize }, bytes);
  await device.logging.report({ iova, length, pageSize, into }, user);
  return reply;
}

/** @throws UapiError EINVAL for what no page size can be */
function asNumber(value: bigint, syscall: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw refusal("EINVAL", syscall, `use a page size of ${value}`);
  return Number(value);
}
