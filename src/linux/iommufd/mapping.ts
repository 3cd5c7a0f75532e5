import type { MapFlags, MemoryFile, MemorySpan, ObjectId } from "../../host/host.js";
import { hex, type Iova } from "../../memory/address.js";
import { holdsOf } from "../../memory/holds.js";
import { ioctl } from "../../sys/ioctl.js";
import { isErrno } from "../../uapi/errno.js";
import {
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  iommu_ioas_copy,
  iommu_ioas_map,
  iommu_ioas_map_file,
  iommu_ioas_unmap,
} from "../../uapi/iommufd.js";
import type { Mappings } from "../mappings.js";
import { MemfdFile } from "../memfd-file.js";
import { Command } from "./command.js";
import { isId, isU64, lastOf, type Operation, refuse } from "./operation.js";

/*
 * The calls that change what an IOAS maps, and with it what memory of this process is held.
 */

interface MapArguments {
  readonly ioas: ObjectId;
  readonly mappings: Mappings;
  readonly span: MemorySpan;
  readonly flags: MapFlags;
}

/** Where the fields lie: u32 by offset / 4, u64 by offset / 8. */
const MAP_FIELDS = {
  flags: iommu_ioas_map.offsetOf("flags") / 4,
  ioas_id: iommu_ioas_map.offsetOf("ioas_id") / 4,
  user_va: iommu_ioas_map.offsetOf("user_va") / 8,
  length: iommu_ioas_map.offsetOf("length") / 8,
  iova: iommu_ioas_map.offsetOf("iova") / 8,
};

/** IOMMU_IOAS_MAP; answers the IOVA. */
export const MAP: Operation<MapArguments, Iova> = {
  command: new Command(IOMMU_IOAS_MAP, iommu_ioas_map),
  attempted: ({ ioas, span, flags }) => mapping(ioas, span.length, flags),
  encode(args) {
    const { command } = MAP;
    const { ioas, span, flags } = args;
    const { arena, offset, length } = span;
    if (!isId(ioas)) refuse("ENOENT", MAP, args);
    if (!isStretch(offset, length) || !isIova(flags)) refuse("EOVERFLOW", MAP, args);
    if (offset + length > arena.bytes) refuse("EFAULT", MAP, args, "give memory inside the arena");
    const holds = holdsOf(arena);
    command.u32[MAP_FIELDS.flags] = flagsOf(flags);
    command.u32[MAP_FIELDS.ioas_id] = ioas;
    command.setNumber(MAP_FIELDS.user_va, holds.address + offset);
    command.setNumber(MAP_FIELDS.length, length);
    command.u64[MAP_FIELDS.iova] = flags.iova ?? 0n;
    // From before the kernel sees it: the memory must not go while the call runs.
    holds.take();
  },
  decode({ mappings, span, flags }) {
    const iova = flags.iova ?? MAP.command.u64[MAP_FIELDS.iova];
    mappings.add(iova, BigInt(span.length), holdsOf(span.arena));
    return iova;
  },
  failed: ({ span }) => holdsOf(span.arena).release(),
};

interface MapFileArguments {
  readonly ioas: ObjectId;
  readonly file: MemoryFile;
  readonly range: { readonly start: number; readonly length: number };
  readonly flags: MapFlags;
}

/** IOMMU_IOAS_MAP_FILE; answers the IOVA. The kernel itself holds the file. */
export const MAP_FILE: Operation<MapFileArguments, Iova> = {
  command: new Command(IOMMU_IOAS_MAP_FILE, iommu_ioas_map_file),
  attempted: ({ ioas, range, flags }) => mapping(ioas, range.length, flags),
  encode(args) {
    const { ioas, file, range, flags } = args;
    if (!isId(ioas)) refuse("ENOENT", MAP_FILE, args);
    if (!isStretch(range.start, range.length) || !isIova(flags)) refuse("EOVERFLOW", MAP_FILE, args);
    const values = {
      size: iommu_ioas_map_file.size,
      flags: flagsOf(flags),
      ioas_id: ioas,
      // Of a file that another host made there is no descriptor: the kernel's answer to -1 is the right one, EBADF.
      fd: file instanceof MemfdFile ? file.fd : -1,
      start: BigInt(range.start),
      length: BigInt(range.length),
      iova: flags.iova ?? 0n,
    };
    iommu_ioas_map_file.encode(values, MAP_FILE.command.bytes);
  },
  decode: () => iommu_ioas_map_file.decode(MAP_FILE.command.bytes).iova,
};

interface CopyArguments {
  readonly from: { readonly ioas: ObjectId; readonly iova: Iova; readonly length: bigint };
  readonly to: { readonly ioas: ObjectId } & MapFlags;
  readonly source: Mappings;
  readonly target: Mappings;
}

/** IOMMU_IOAS_COPY; answers the IOVA in the destination. */
export const COPY: Operation<CopyArguments, Iova> = {
  command: new Command(IOMMU_IOAS_COPY, iommu_ioas_copy),
  attempted: ({ from: { ioas, iova, length }, to }) =>
    `copy ${hex(length)} bytes at ${hex(iova)} of IOAS ${ioas} to IOAS ${to.ioas}`,
  encode(args) {
    const { from, to } = args;
    if (!isId(from.ioas) || !isId(to.ioas)) refuse("ENOENT", COPY, args);
    if (!isU64(from.iova) || !isU64(from.length) || !isIova(to)) refuse("EOVERFLOW", COPY, args);
    const values = {
      size: iommu_ioas_copy.size,
      flags: flagsOf(to),
      dst_ioas_id: to.ioas,
      src_ioas_id: from.ioas,
      length: from.length,
      dst_iova: to.iova ?? 0n,
      src_iova: from.iova,
    };
    iommu_ioas_copy.encode(values, COPY.command.bytes);
  },
  decode({ from: { iova, length }, source, target }) {
    const to = iommu_ioas_copy.decode(COPY.command.bytes).dst_iova;
    source.copyTo(target, { iova, length, to });
    return to;
  },
};

interface UnmapArguments {
  readonly ioas: ObjectId;
  readonly mappings: Mappings;
  readonly iova: Iova;
  readonly length: bigint;
}

const UNMAP_FIELDS = {
  ioas_id: iommu_ioas_unmap.offsetOf("ioas_id") / 4,
  iova: iommu_ioas_unmap.offsetOf("iova") / 8,
  length: iommu_ioas_unmap.offsetOf("length") / 8,
};

/** IOMMU_IOAS_UNMAP; answers the bytes that were unmapped. */
export const UNMAP: Operation<UnmapArguments, bigint> = {
  command: new Command(IOMMU_IOAS_UNMAP, iommu_ioas_unmap),
  attempted: ({ ioas, iova, length }) => `unmap ${hex(length)} bytes at ${hex(iova)} of IOAS ${ioas}`,
  encode(args) {
    const { u32, u64 } = UNMAP.command;
    const { ioas, iova, length } = args;
    if (!isId(ioas)) refuse("ENOENT", UNMAP, args);
    if (!isU64(iova) || !isU64(length)) refuse("EOVERFLOW", UNMAP, args);
    u32[UNMAP_FIELDS.ioas_id] = ioas;
    u64[UNMAP_FIELDS.iova] = iova;
    u64[UNMAP_FIELDS.length] = length;
  },
  decode({ mappings, iova, length }) {
    mappings.remove(iova, lastOf(iova, length));
    return UNMAP.command.u64[UNMAP_FIELDS.length];
  },
  failed: followUnmap,
};

/**
 * An unmap of a range fails at the first mapping that it can't unmap, with those below unmapped. The kernel knows which:
 * a copy of a mapping onto itself is refused with EEXIST while it is there, and with ENOENT once it isn't.
 */
function followUnmap({ ioas, mappings, iova, length }: UnmapArguments, fd: number): void {
  if (length === 0n) return;
  for (const { start, last } of mappings.in(iova, lastOf(iova, length))) {
    const copyOntoItself = iommu_ioas_copy.encode({
      size: iommu_ioas_copy.size,
      flags: IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
      src_ioas_id: ioas,
      dst_ioas_id: ioas,
      length: last - start + 1n,
      src_iova: start,
      dst_iova: start,
    });
    try {
      ioctl(fd, IOMMU_IOAS_COPY, copyOntoItself, () => `look whether ${hex(start)} is mapped in IOAS ${ioas}`);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) return;
    }
    mappings.remove(start, last);
  }
}

function isStretch(start: number, length: number): boolean {
  return Number.isSafeInteger(start) && start >= 0 && length >= 0 && Number.isSafeInteger(start + length);
}

function isIova({ iova }: MapFlags): boolean {
  return iova === undefined || isU64(iova);
}

function flagsOf({ iova, readable, writeable }: MapFlags): number {
  return (
    (iova === undefined ? 0 : IOMMU_IOAS_MAP_FIXED_IOVA) |
    (readable ? IOMMU_IOAS_MAP_READABLE : 0) |
    (writeable ? IOMMU_IOAS_MAP_WRITEABLE : 0)
  );
}

function mapping(ioas: ObjectId, length: number, { iova }: MapFlags): string {
  return `map ${hex(length)} bytes${iova === undefined ? "" : ` at IOVA ${hex(iova)}`} in IOAS ${ioas}`;
}
