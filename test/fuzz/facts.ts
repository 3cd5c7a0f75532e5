import type { MigrationSupport } from "../../src/host/host.js";
import { isErrno } from "../../src/uapi/errno.js";
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  vfio_device_feature,
  vfio_device_feature_migration,
  vfio_irq_info,
  vfio_region_info,
} from "../../src/uapi/vfio.js";
import { DIRTMAP_COMMAND, dirtmap_counters } from "../../src/uapi/vfio-user.js";
import { closeAll, RawClient } from "../../src/vfio-user/raw-client.test.helper.js";
import type { DmaMode } from "../../src/vfio-user/server/client-memory.js";

/** VFIO_PCI_NUM_REGIONS and VFIO_PCI_NUM_IRQS. */
export const PCI_REGIONS = 9;
export const PCI_IRQS = 5;

/** For whatever a server has to say. */
const ROOM = 65536;

/** What is known of a served device before it is fuzzed: by this the right answer to a message is told. */
export interface DeviceFacts {
  readonly model: string;
  /** By index; size 0: there is none. */
  readonly regions: readonly { readonly bytes: number; readonly readable: boolean; readonly writeable: boolean }[];
  /** Interrupts by type. */
  readonly irqs: readonly number[];
  readonly migration: MigrationSupport | null;
  readonly dmaLogging: {
    readonly pageSizes: readonly number[];
    readonly maxRanges: number;
    readonly addressWidth: number;
  } | null;
  readonly dma: DmaMode;
}

/** Asks a server for them, at its control socket. */
export function readFacts(controlPath: string, model: string, dma: DmaMode): DeviceFacts {
  using client = RawClient.open(controlPath);
  const regions = Array.from({ length: PCI_REGIONS }, (_, index) => {
    const { payload, fds } = client.call("DEVICE_GET_REGION_INFO", vfio_region_info, { argsz: ROOM, index });
    closeAll(fds);
    const { size, flags } = vfio_region_info.decode(payload);
    return {
      bytes: Number(size),
      readable: (flags & VFIO_REGION_INFO_FLAG_READ) !== 0,
      writeable: (flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0,
    };
  });
  const irqs = Array.from({ length: PCI_IRQS }, (_, index) => {
    const { payload } = client.call("DEVICE_GET_IRQ_INFO", vfio_irq_info, { argsz: vfio_irq_info.size, index });
    return vfio_irq_info.decode(payload).count;
  });
  const { payload } = client.call(DIRTMAP_COMMAND.COUNTERS, dirtmap_counters, { argsz: ROOM });
  const counters = JSON.parse(Buffer.from(payload.subarray(dirtmap_counters.size, -1)).toString());
  return { model, dma, regions, irqs, dmaLogging: counters.dmaLogging, migration: migrationOf(client) };
}

function migrationOf(client: RawClient): MigrationSupport | null {
  const { size: head } = vfio_device_feature;
  const { size } = vfio_device_feature_migration;
  const request = { argsz: head + size, flags: VFIO_DEVICE_FEATURE.MIGRATION | VFIO_DEVICE_FEATURE_GET };
  try {
    const { payload } = client.call("DEVICE_FEATURE", vfio_device_feature, request, { data: new Uint8Array(size) });
    const flags = Number(vfio_device_feature_migration.decode(payload, head).flags);
    return {
      stopCopy: (flags & VFIO_MIGRATION_STOP_COPY) !== 0,
      p2p: (flags & VFIO_MIGRATION_P2P) !== 0,
      preCopy: (flags & VFIO_MIGRATION_PRE_COPY) !== 0,
    };
  } catch (error) {
    if (isErrno(error, "ENOTTY")) return null;
    throw error;
  }
}
