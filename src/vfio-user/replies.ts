import type { Fields, Struct } from "../uapi/struct.js";
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_PRECOPY_INFO_REINIT,
  vfio_device_feature,
  vfio_device_feature_mig_state,
  vfio_irq_info,
  vfio_precopy_info,
  vfio_region_info,
} from "../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  dirtmap_client_memory,
  dirtmap_counters,
  dirtmap_handover,
  dirtmap_write_path,
  VFIO_DEVICE_FEATURE_MASK,
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

/*
 * What a reply must be, by the request that it answers: one form per command, for the replies of servers and, to DMA_READ
 * and DMA_WRITE, of clients. A reply that has passed is as long as it must be, and repeats what it must repeat; values that
 * the peer is free to choose are checked where they are used.
 *
 * No reply may be longer than the room that was offered for it. So a client that offers none for a region's capabilities
 * never has to follow a chain of them.
 */

/** A field that the reply repeats from the same place in the request. */
interface Repeated {
  readonly name: string;
  readonly at: number;
  readonly bytes: number;
}

interface Form {
  /** Lengths that the reply may have. */
  bytes(request: DataView): { readonly least: number; readonly most: number };
  /** What it repeats, if it has a payload at all. */
  readonly repeats: readonly Repeated[] | ((request: DataView) => readonly Repeated[]);
  /** What else is wrong with a reply of the right length, as a phrase; null: nothing. */
  check?(reply: DataView, request: DataView): string | null;
}

const REGION_HEAD = vfio_user_region_access.size;
const DMA_HEAD = vfio_user_dma_access.size;
const FEATURE_HEAD = vfio_device_feature.size;

const exactly = (bytes: number) => ({ least: bytes, most: bytes });
const u32 = (view: DataView, at: number) => view.getUint32(at, true);

function fields<Of extends Fields>(layout: Struct<Of>, names: readonly (keyof Of & string)[], from = 0): Repeated[] {
  return names.map((name) => {
    const { offset, size } = layout.fields[layout.fields.findIndex((field) => field.name === name)];
    return { name, at: from + offset, bytes: size };
  });
}

/** argsz says how large the whole answer is, and is never less than the structure that it is in. */
function argszOf(layout: Struct<Fields>): (reply: DataView) => string | null {
  return (reply) => (u32(reply, 0) < layout.size ? `its argsz is ${u32(reply, 0)}` : null);
}

const EMPTY: Form = { bytes: () => exactly(0), repeats: [] };

const REGION_ACCESS = fields(vfio_user_region_access, ["offset", "region", "count"]);
const DMA_ACCESS = fields(vfio_user_dma_access, ["address", "count"]);
const CLIENT_MEMORY = fields(dirtmap_client_memory, ["address", "count"]);

const FORMS: ReadonlyMap<number, Form> = new Map<number, Form>([
  [VFIO_USER_COMMAND.DMA_MAP, EMPTY],
  [
    VFIO_USER_COMMAND.DMA_UNMAP,
    {
      bytes: (request) => {
        const { size: head } = vfio_user_dma_unmap;
        const flags = u32(request, vfio_user_dma_unmap.offsetOf("flags"));
        if ((flags & VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP) === 0) return exactly(head);
        const room = request.getBigUint64(head + vfio_user_bitmap.offsetOf("size"), true);
        return exactly(head + vfio_user_bitmap.size + Number(room));
      },
      repeats: fields(vfio_user_dma_unmap, ["flags", "address", "size"]),
    },
  ],
  [
    VFIO_USER_COMMAND.DEVICE_GET_INFO,
    { bytes: () => exactly(vfio_user_device_info.size), repeats: [], check: argszOf(vfio_user_device_info) },
  ],
  [
    VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO,
    {
      bytes: (request) => ({ least: vfio_region_info.size, most: u32(request, 0) }),
      repeats: fields(vfio_region_info, ["index"]),
      check: argszOf(vfio_region_info),
    },
  ],
  [
    VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO,
    {
      bytes: () => exactly(vfio_irq_info.size),
      repeats: fields(vfio_irq_info, ["index"]),
      check: argszOf(vfio_irq_info),
    },
  ],
  [VFIO_USER_COMMAND.DEVICE_SET_IRQS, EMPTY],
  [
    VFIO_USER_COMMAND.REGION_READ,
    {
      bytes: (request) => exactly(REGION_HEAD + u32(request, vfio_user_region_access.offsetOf("count"))),
      repeats: REGION_ACCESS,
    },
  ],
  [VFIO_USER_COMMAND.REGION_WRITE, { bytes: () => exactly(REGION_HEAD), repeats: REGION_ACCESS }],
  [
    VFIO_USER_COMMAND.DMA_READ,
    {
      bytes: (request) => exactly(DMA_HEAD + u32(request, vfio_user_dma_access.offsetOf("count"))),
      repeats: DMA_ACCESS,
    },
  ],
  // The specification has the request's head in it, and so has libvfio-user; QEMU answers with the header alone.
  [
    VFIO_USER_COMMAND.DMA_WRITE,
    {
      bytes: () => ({ least: 0, most: DMA_HEAD }),
      repeats: DMA_ACCESS,
      check: ({ byteLength }) => (byteLength === 0 || byteLength === DMA_HEAD ? null : `it has ${byteLength} bytes`),
    },
  ],
  [VFIO_USER_COMMAND.DEVICE_RESET, EMPTY],
  [
    VFIO_USER_COMMAND.DEVICE_FEATURE,
    {
      bytes: (request) => {
        const flags = u32(request, vfio_device_feature.offsetOf("flags"));
        const room = u32(request, 0);
        if ((flags & VFIO_DEVICE_FEATURE_PROBE) !== 0) return { least: FEATURE_HEAD, most: room };
        return exactly((flags & VFIO_DEVICE_FEATURE_GET) !== 0 ? room : request.byteLength);
      },
      repeats: (request) => {
        const flags = u32(request, vfio_device_feature.offsetOf("flags"));
        const head = fields(vfio_device_feature, ["flags"]);
        if ((flags & VFIO_DEVICE_FEATURE_PROBE) !== 0) return head;
        return [...head, ...(REPEATED_BY_FEATURE.get(flags & VFIO_DEVICE_FEATURE_MASK)?.(flags) ?? [])];
      },
    },
  ],
  [
    VFIO_USER_COMMAND.MIG_DATA_READ,
    {
      // libvfio-user's answer is as long as what was asked for, whatever came.
      bytes: (request) => ({
        least: vfio_user_mig_data.size,
        most: vfio_user_mig_data.size + u32(request, vfio_user_mig_data.offsetOf("size")),
      }),
      repeats: [],
      check: (reply) => {
        const size = u32(reply, vfio_user_mig_data.offsetOf("size"));
        return vfio_user_mig_data.size + size <= reply.byteLength ? null : `${size} bytes are said to be in it`;
      },
    },
  ],
  [VFIO_USER_COMMAND.MIG_DATA_WRITE, EMPTY],
  [
    DIRTMAP_COMMAND.COUNTERS,
    { bytes: (request) => ({ least: dirtmap_counters.size, most: u32(request, 0) }), repeats: [] },
  ],
  [
    DIRTMAP_COMMAND.PRECOPY_INFO,
    {
      bytes: () => exactly(vfio_precopy_info.size),
      repeats: [],
      check: (reply) => {
        const { flags, initial_bytes, dirty_bytes } = vfio_precopy_info.decode(
          new Uint8Array(reply.buffer, reply.byteOffset, reply.byteLength),
        );
        if ((flags & ~VFIO_PRECOPY_INFO_REINIT) !== 0) return `its flags are ${flags}`;
        const most = BigInt(Number.MAX_SAFE_INTEGER);
        return initial_bytes + dirty_bytes <= most ? null : `${initial_bytes} and ${dirty_bytes} bytes are to come`;
      },
    },
  ],
  [
    DIRTMAP_COMMAND.HANDOVER,
    { bytes: () => exactly(dirtmap_handover.size), repeats: fields(dirtmap_handover, ["notice"]) },
  ],
  [
    DIRTMAP_COMMAND.WRITE_PATH,
    { bytes: () => exactly(dirtmap_write_path.size), repeats: fields(dirtmap_write_path, ["path"]) },
  ],
  [
    DIRTMAP_COMMAND.CLIENT_READ,
    {
      bytes: (request) => exactly(dirtmap_client_memory.size + u32(request, dirtmap_client_memory.offsetOf("count"))),
      repeats: CLIENT_MEMORY,
    },
  ],
  [DIRTMAP_COMMAND.CLIENT_WRITE, { bytes: () => exactly(dirtmap_client_memory.size), repeats: CLIENT_MEMORY }],
  [DIRTMAP_COMMAND.CLIENT_REWRITE, { bytes: () => exactly(dirtmap_client_memory.size), repeats: CLIENT_MEMORY }],
]);

/** What a feature's answer repeats, besides its flags. */
const REPEATED_BY_FEATURE = new Map<number, (flags: number) => readonly Repeated[]>([
  [
    VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE,
    // What a GET answers is the server's to say.
    (flags) =>
      (flags & VFIO_DEVICE_FEATURE_GET) !== 0
        ? []
        : fields(vfio_device_feature_mig_state, ["device_state"], FEATURE_HEAD),
  ],
  [VFIO_DEVICE_FEATURE.DMA_LOGGING_START, () => fields(vfio_user_dma_logging_control, ["num_ranges"], FEATURE_HEAD)],
  [
    VFIO_DEVICE_FEATURE.DMA_LOGGING_REPORT,
    () => fields(vfio_user_dma_logging_report, ["iova", "length", "page_size"], FEATURE_HEAD),
  ],
]);

/**
 * What is wrong with the payload of a reply that is no error, as a phrase; null: nothing.
 * @param request the payload that it answers
 */
export function replyProblem(command: number, request: Uint8Array | null, reply: Uint8Array): string | null {
  const form = FORMS.get(command);
  if (form === undefined) return null;
  const asked = viewOf(request ?? new Uint8Array(0));
  const came = viewOf(reply);
  const { least, most } = form.bytes(asked);
  if (came.byteLength < least || came.byteLength > most) {
    return `${came.byteLength} bytes came, where ${least === most ? least : `${least} to ${most}`} were due`;
  }
  const problem = form.check?.(came, asked) ?? null;
  if (problem !== null || came.byteLength === 0) return problem;
  for (const { name, at, bytes } of typeof form.repeats === "function" ? form.repeats(asked) : form.repeats) {
    for (let i = at; i < at + bytes; i++) {
      if (came.getUint8(i) !== asked.getUint8(i)) return `its ${name} is not the request's`;
    }
  }
  return null;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
