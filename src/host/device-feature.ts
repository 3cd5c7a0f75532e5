import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { Fields, Given, Struct, Values } from "../uapi/struct.js";
import {
  type DeviceFeature,
  type MigState,
  VFIO_DEVICE_STATE,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
  VFIO_PRECOPY_INFO_REINIT,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_range,
  vfio_precopy_info,
} from "../uapi/vfio.js";
import { plausibleBytes } from "./device-checks.js";
import type { LoggedRange } from "./dma-logging-checks.js";
import type { MigrationSupport, PrecopyInfo } from "./host.js";
import type { Call } from "./iommufd-checks.js";

/*
 * VFIO_DEVICE_FEATURE: what carries it to a device, and what its structures mean. They are those of the kernel; of a structure
 * that ends in a pointer (DMA_LOGGING_START and _REPORT), what the pointer names goes along beside it, and the transport sees
 * to it.
 */

/** All states, in the header's order. */
export const MIG_STATES = Object.keys(VFIO_DEVICE_STATE) as readonly MigState[];

/** Carries features to one device: by ioctls, or by messages. A refusal is a UapiError with the device's errno. */
export interface FeatureTransport {
  /** PROBE: true if the device has the feature. */
  probe(feature: DeviceFeature): Promise<boolean>;
  /**
   * GET: returns the structure as the device left it.
   * @param bitmap what DMA_LOGGING_REPORT adds to; bit 0 is the structure's iova
   */
  get(feature: DeviceFeature, structure: Uint8Array, call: Call, bitmap?: DirtyBitmap): Promise<Uint8Array>;
  /**
   * SET: returns the structure as the device left it.
   * @param array the ranges of DMA_LOGGING_START
   */
  set(feature: DeviceFeature, structure: Uint8Array, call: Call, array?: Uint8Array): Promise<Uint8Array>;
  /** VFIO_DEVICE_RESET */
  reset(call: Call): Promise<void>;
}

/** GET of a feature with a structure. */
export async function getFeature<Of extends Fields>(
  transport: FeatureTransport,
  feature: DeviceFeature,
  layout: Struct<Of>,
  call: Call,
  { values = {}, bitmap }: { values?: Given<Of>; bitmap?: DirtyBitmap } = {},
): Promise<Values<Of>> {
  return layout.decode(await transport.get(feature, layout.encode(values), call, bitmap));
}

/** SET of a feature with a structure. */
export async function setFeature<Of extends Fields>(
  transport: FeatureTransport,
  feature: DeviceFeature,
  layout: Struct<Of>,
  call: Call,
  { values = {}, array }: { values?: Given<Of>; array?: Uint8Array },
): Promise<Values<Of>> {
  return layout.decode(await transport.set(feature, layout.encode(values), call, array));
}

/** DMA_LOGGING_START; returns the page size that the device chose, as it came. */
export async function requestLog(
  transport: FeatureTransport,
  { pageSize, ranges }: { readonly pageSize: number; readonly ranges: readonly LoggedRange[] },
  call: Call,
): Promise<bigint> {
  const { size } = vfio_device_feature_dma_logging_range;
  const array = new Uint8Array(ranges.length * size);
  for (const [i, range] of ranges.entries()) vfio_device_feature_dma_logging_range.encode(range, array, i * size);
  const values = { page_size: BigInt(pageSize), num_ranges: ranges.length };
  const layout = vfio_device_feature_dma_logging_control;
  return (await setFeature(transport, "DMA_LOGGING_START", layout, call, { values, array })).page_size;
}

/** Flags of struct vfio_device_feature_migration, as what is supported. */
export function supportOf(flags: bigint): MigrationSupport {
  const has = (flag: number) => (flags & BigInt(flag)) !== 0n;
  return {
    stopCopy: has(VFIO_MIGRATION_STOP_COPY),
    p2p: has(VFIO_MIGRATION_P2P),
    preCopy: has(VFIO_MIGRATION_PRE_COPY),
  };
}

/** The reverse of {@link supportOf}. */
export function flagsOf({ stopCopy, p2p, preCopy }: MigrationSupport): bigint {
  const flags =
    (stopCopy ? VFIO_MIGRATION_STOP_COPY : 0) |
    (p2p ? VFIO_MIGRATION_P2P : 0) |
    (preCopy ? VFIO_MIGRATION_PRE_COPY : 0);
  return BigInt(flags);
}

/** A number of enum vfio_device_mig_state; undefined for one that the header does not have. */
export function stateOf(device_state: number): MigState | undefined {
  return MIG_STATES.find((state) => VFIO_DEVICE_STATE[state] === device_state);
}

/** struct vfio_precopy_info. @param v2 its flags mean something: MIG_PRECOPY_INFOv2 was opted in to */
export function precopyInfoOf(bytes: Uint8Array, v2: boolean, call: Call): PrecopyInfo {
  const { flags, initial_bytes, dirty_bytes } = vfio_precopy_info.decode(bytes);
  return {
    initialBytes: plausibleBytes(initial_bytes, call),
    dirtyBytes: plausibleBytes(dirty_bytes, call),
    reinit: v2 && (flags & VFIO_PRECOPY_INFO_REINIT) !== 0,
  };
}
