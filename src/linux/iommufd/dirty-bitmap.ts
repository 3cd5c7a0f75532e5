import type { BitmapQuery, ObjectId } from "../../host/host.js";
import { hex, PAGE_SIZE } from "../../memory/address.js";
import {
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
  iommu_hwpt_get_dirty_bitmap,
} from "../../uapi/iommufd.js";
import { Command } from "./command.js";
import { completeLeaves } from "./contiguous-leaves.js";
import { isId, isU64, type Operation, refuse } from "./operation.js";

interface ReadArguments {
  readonly hwpt: ObjectId;
  readonly query: BitmapQuery & { readonly clear: boolean };
  /** Of the query's first address in its bitmap. */
  readonly firstBit: number;
  /** Whether the kernel may have left out entries of contiguous leaves. */
  readonly complete: boolean;
}

/** Where the fields lie: u32 by offset / 4, u64 by offset / 8. */
const FIELDS = {
  hwpt_id: iommu_hwpt_get_dirty_bitmap.offsetOf("hwpt_id") / 4,
  flags: iommu_hwpt_get_dirty_bitmap.offsetOf("flags") / 4,
  iova: iommu_hwpt_get_dirty_bitmap.offsetOf("iova") / 8,
  length: iommu_hwpt_get_dirty_bitmap.offsetOf("length") / 8,
  page_size: iommu_hwpt_get_dirty_bitmap.offsetOf("page_size") / 8,
  data: iommu_hwpt_get_dirty_bitmap.offsetOf("data") / 8,
};

/** Linux doesn't tell what leaves it met. */
const ANSWER: { readonly leafSizes: readonly number[] } = { leafSizes: [] };

/** IOMMU_HWPT_GET_DIRTY_BITMAP: the kernel sets the bits in the caller's bitmap, in place. */
export const GET_DIRTY_BITMAP: Operation<ReadArguments, typeof ANSWER> = {
  command: new Command(IOMMU_HWPT_GET_DIRTY_BITMAP, iommu_hwpt_get_dirty_bitmap),
  attempted: ({ hwpt, query: { iova, length } }) =>
    `read the dirty bits of ${hex(length)} bytes at ${hex(iova)} of HWPT ${hwpt}`,
  encode(args) {
    const { command } = GET_DIRTY_BITMAP;
    const { hwpt, query, firstBit } = args;
    const { iova, length, pageSize, into, clear } = query;
    if (!isId(hwpt)) refuse("ENOENT", GET_DIRTY_BITMAP, args);
    if (!isU64(iova) || !isU64(length)) refuse("EOVERFLOW", GET_DIRTY_BITMAP, args);
    // At IOVA 0 the kernel takes it for the whole address space, for which no bitmap has room.
    if (iova === 0n && length === 0n) refuse("EINVAL", GET_DIRTY_BITMAP, args, "give a length above 0");
    // The kernel is given an address, and writes what it finds: that the bits fit is for us to check.
    const fits = into.granule === pageSize && firstBit >= 0 && firstBit + Number(length) / pageSize <= into.bits;
    if (!fits || firstBit % 8 !== 0) {
      refuse("EINVAL", GET_DIRTY_BITMAP, args, "give a bitmap of that range and page size");
    }
    command.u32[FIELDS.hwpt_id] = hwpt;
    command.u32[FIELDS.flags] = clear ? 0 : IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
    command.u64[FIELDS.iova] = iova;
    command.u64[FIELDS.length] = length;
    command.setNumber(FIELDS.page_size, pageSize);
    command.setNumber(FIELDS.data, into.address + firstBit / 8);
  },
  writes: ({ query: { length, pageSize, into }, firstBit }) => ({
    address: into.address + firstBit / 8,
    bytes: Math.ceil(Number(length) / pageSize / 8),
  }),
  touch({ query: { length, pageSize, into }, firstBit }) {
    const lastWord = Math.floor((firstBit + Number(length) / pageSize - 1) / 32);
    const wordsPerPage = PAGE_SIZE / 4;
    // By page, since the bitmap begins at one.
    for (let page = Math.floor(firstBit / 32 / wordsPerPage); page * wordsPerPage <= lastWord; page++) {
      Atomics.or(into.words, page * wordsPerPage, 0);
    }
  },
  decode({ query, complete }) {
    // A read that begins or ends inside a leaf makes the kernel mark more than was asked for, beyond the last bit, too.
    query.into.clearPadding();
    if (complete) completeLeaves(query.into, query);
    return ANSWER;
  },
};
