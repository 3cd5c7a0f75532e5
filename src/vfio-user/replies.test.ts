import { describe, expect, it } from "vitest";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_GET as GET,
  VFIO_DEVICE_FEATURE_PROBE as PROBE,
  VFIO_DEVICE_FEATURE_SET as SET,
  vfio_device_feature,
  vfio_device_feature_mig_state,
  vfio_irq_info,
  vfio_precopy_info,
  vfio_region_info,
} from "../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  dirtmap_counters,
  dirtmap_handover,
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP,
  vfio_user_bitmap,
  vfio_user_device_info,
  vfio_user_dma_access,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
  vfio_user_dma_unmap,
  vfio_user_mig_data,
  vfio_user_region_access,
} from "../uapi/vfio-user.js";
import { replyProblem } from "./replies.js";

function joined(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

const head = (argsz: number, flags: number) => vfio_device_feature.encode({ argsz, flags });
const unmap = { argsz: 48, flags: VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP, address: 0x1000n, size: 0x1000n };
const report = vfio_user_dma_logging_report.encode({ iova: 0x1000n, length: 0x2000n, page_size: 4096n });
const toGet = FEATURE.DMA_LOGGING_REPORT | GET;
const toStart = FEATURE.DMA_LOGGING_START | SET;
const state = FEATURE.MIG_DEVICE_STATE;
const access = vfio_user_region_access.encode({ offset: 8n, region: 2, count: 4 });
const dma = vfio_user_dma_access.encode({ address: 0x5000n, count: 4n });
const four = Uint8Array.of(1, 2, 3, 4);

/** A right reply, and words of it whose change must be found; every other word is the peer's to choose. */
interface Case {
  readonly name: string;
  readonly command: number;
  readonly request: Uint8Array;
  readonly reply: Uint8Array;
  readonly repeated: readonly number[];
  /** It may be shorter, down to this many bytes. */
  readonly least?: number;
}

const { DEVICE_FEATURE } = VFIO_USER_COMMAND;
const CASES: readonly Case[] = [
  {
    name: "DMA_UNMAP",
    command: VFIO_USER_COMMAND.DMA_UNMAP,
    request: vfio_user_dma_unmap.encode({ ...unmap, flags: 0 }),
    reply: vfio_user_dma_unmap.encode({ ...unmap, flags: 0 }),
    repeated: [1, 2, 3, 4, 5],
  },
  {
    name: "DMA_UNMAP with a bitmap",
    command: VFIO_USER_COMMAND.DMA_UNMAP,
    request: joined(vfio_user_dma_unmap.encode(unmap), vfio_user_bitmap.encode({ pgsize: 4096n, size: 8n })),
    reply: joined(
      vfio_user_dma_unmap.encode(unmap),
      vfio_user_bitmap.encode({ pgsize: 4096n, size: 8n }),
      new Uint8Array(8),
    ),
    repeated: [1, 2, 3, 4, 5],
  },
  {
    name: "DEVICE_GET_INFO",
    command: VFIO_USER_COMMAND.DEVICE_GET_INFO,
    request: vfio_user_device_info.encode({ argsz: 16 }),
    reply: vfio_user_device_info.encode({ argsz: 16, num_regions: 9 }),
    repeated: [0],
  },
  {
    name: "DEVICE_GET_REGION_INFO, with no room for capabilities",
    command: VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO,
    request: vfio_region_info.encode({ argsz: 32, index: 3 }),
    reply: vfio_region_info.encode({ argsz: 80, index: 3, flags: 8, cap_offset: 32 }),
    repeated: [0, 2],
  },
  {
    name: "DEVICE_GET_IRQ_INFO",
    command: VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO,
    request: vfio_irq_info.encode({ argsz: 16, index: 2 }),
    reply: vfio_irq_info.encode({ argsz: 16, index: 2, count: 5 }),
    repeated: [0, 2],
  },
  {
    name: "REGION_READ",
    command: VFIO_USER_COMMAND.REGION_READ,
    request: access,
    reply: joined(access, four),
    repeated: [0, 1, 2, 3],
  },
  {
    name: "REGION_WRITE",
    command: VFIO_USER_COMMAND.REGION_WRITE,
    request: joined(access, four),
    reply: access,
    repeated: [0, 1, 2, 3],
  },
  {
    name: "DMA_READ",
    command: VFIO_USER_COMMAND.DMA_READ,
    request: dma,
    reply: joined(dma, four),
    repeated: [0, 1, 2, 3],
  },
  {
    name: "DEVICE_FEATURE, PROBE",
    command: DEVICE_FEATURE,
    request: head(8, state | PROBE),
    reply: head(8, state | PROBE),
    repeated: [1],
  },
  {
    name: "MIG_DEVICE_STATE, GET",
    command: DEVICE_FEATURE,
    request: head(16, state | GET),
    reply: joined(head(16, state | GET), vfio_device_feature_mig_state.encode({ device_state: 3, data_fd: -1 })),
    repeated: [1],
  },
  {
    name: "MIG_DEVICE_STATE, SET",
    command: DEVICE_FEATURE,
    request: joined(head(16, state | SET), vfio_device_feature_mig_state.encode({ device_state: 3, data_fd: -1 })),
    reply: joined(head(16, state | SET), vfio_device_feature_mig_state.encode({ device_state: 3, data_fd: 9 })),
    repeated: [1, 2],
  },
  {
    name: "DMA_LOGGING_START",
    command: DEVICE_FEATURE,
    request: joined(head(24, toStart), vfio_user_dma_logging_control.encode({ page_size: 4096n, num_ranges: 0 })),
    reply: joined(head(24, toStart), vfio_user_dma_logging_control.encode({ page_size: 8192n, num_ranges: 0 })),
    repeated: [1, 4],
  },
  {
    name: "DMA_LOGGING_REPORT",
    command: DEVICE_FEATURE,
    request: joined(head(40, toGet), report),
    reply: joined(head(40, toGet), report, new Uint8Array(8)),
    repeated: [1, 2, 3, 4, 5, 6, 7],
  },
  {
    name: "MIG_DATA_READ",
    command: VFIO_USER_COMMAND.MIG_DATA_READ,
    request: vfio_user_mig_data.encode({ argsz: 12, size: 4 }),
    reply: joined(vfio_user_mig_data.encode({ argsz: 12, size: 4 }), four),
    repeated: [1],
  },
  {
    name: "counters",
    command: DIRTMAP_COMMAND.COUNTERS,
    request: dirtmap_counters.encode({ argsz: 12 }),
    reply: joined(dirtmap_counters.encode({ argsz: 12 }), four),
    repeated: [],
    least: 8,
  },
  {
    name: "pre-copy information",
    command: DIRTMAP_COMMAND.PRECOPY_INFO,
    request: vfio_precopy_info.encode({ argsz: 24 }),
    reply: vfio_precopy_info.encode({ argsz: 24, initial_bytes: 5n, dirty_bytes: 7n }),
    // Sizes that no number holds, and flags that there are not.
    repeated: [1, 3, 5],
  },
  {
    name: "handover",
    command: DIRTMAP_COMMAND.HANDOVER,
    request: joined(dirtmap_handover.encode({ argsz: 12, notice: 1 }), four),
    reply: dirtmap_handover.encode({ argsz: 8, notice: 1 }),
    repeated: [1],
  },
];

describe("a reply", () => {
  it.each(CASES)(
    "to $name passes as it should be, and not with another length",
    ({ command, request, reply, least }) => {
      expect(replyProblem(command, request, reply)).toBeNull();
      for (let bytes = 0; bytes < reply.byteLength; bytes++) {
        const passes = least !== undefined && bytes >= least;
        expect(replyProblem(command, request, reply.subarray(0, bytes)) === null).toBe(passes);
      }
      for (const more of [1, 4, 4096]) {
        expect(replyProblem(command, request, joined(reply, new Uint8Array(more)))).toMatch(/bytes came/);
      }
    },
  );

  it.each(CASES)("to $name does not pass with another word where it has no choice", (one) => {
    const { command, request, reply, repeated } = one;
    const refused: number[] = [];
    for (let word = 0; word * 4 + 4 <= reply.byteLength; word++) {
      const isRefused = [0, 1, 0xffff_ffff].some((value) => {
        const changed = reply.slice();
        new DataView(changed.buffer).setUint32(word * 4, value, true);
        return replyProblem(command, request, changed) !== null;
      });
      if (isRefused) refused.push(word);
    }
    expect(refused).toEqual(repeated);
  });

  it("to a DMA_WRITE repeats its address and count, or has no payload: QEMU's", () => {
    const { DMA_WRITE } = VFIO_USER_COMMAND;
    const request = joined(dma, four);
    expect(replyProblem(DMA_WRITE, request, dma)).toBeNull();
    expect(replyProblem(DMA_WRITE, request, new Uint8Array(0))).toBeNull();
    for (const bytes of [1, 8, 15]) expect(replyProblem(DMA_WRITE, request, dma.subarray(0, bytes))).not.toBeNull();
    expect(replyProblem(DMA_WRITE, request, request)).not.toBeNull();
    for (let at = 0; at < dma.byteLength; at++) {
      const changed = dma.slice();
      changed[at] ^= 0x80;
      expect(replyProblem(DMA_WRITE, request, changed)).toMatch(/is not the request's/);
    }
  });

  it.each(["DMA_MAP", "DEVICE_SET_IRQS", "DEVICE_RESET", "MIG_DATA_WRITE"] as const)("to %s has no payload", (name) => {
    expect(replyProblem(VFIO_USER_COMMAND[name], four, new Uint8Array(0))).toBeNull();
    expect(replyProblem(VFIO_USER_COMMAND[name], four, four)).toBe("4 bytes came, where 0 were due");
  });
});
