import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { MemorySpan, ObjectId } from "../../src/host/host.js";
import type { Iova } from "../../src/memory/address.js";
import { addressOf } from "../../src/sys/address.js";
import { ioctl } from "../../src/sys/ioctl.js";
import { _IO } from "../../src/uapi/ioctl.js";
import { IOMMU_HWPT_ALLOC, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, iommu_hwpt_alloc } from "../../src/uapi/iommufd.js";
import { type Fields, type Given, type Struct, struct, type Values } from "../../src/uapi/struct.js";

/*
 * The kernel's mock IOMMU (CONFIG_IOMMUFD_TEST): its interface drivers/iommu/iommufd/iommufd_test.h as data, and the
 * operations of it that tests need. A mock device is attached from its making to its destruction; its page tables are
 * AMD v1 ones, of which nobody but a test sets the dirty bits.
 */

/** What the default page tables have; those of {@link allocHugeHwpt} have pages of 4 KiB and 1 MiB, and no aperture. */
export const MOCK_APERTURE_START = 1n << 24n;
export const MOCK_APERTURE_LAST = (1n << 31n) - 1n;
export const MOCK_PAGE_SIZE = 2048;
export const MOCK_HUGE_PAGE_SIZE = 512 * MOCK_PAGE_SIZE;

export const MOCK_FLAGS_DEVICE_NO_DIRTY = 1 << 0;

export const IOMMU_HW_INFO_TYPE_SELFTEST = 0xfeedbeef;
export const IOMMU_HW_INFO_SELFTEST_REGVAL = 0xdeadbeef;
export const iommu_test_hw_info = struct("iommu_test_hw_info", { flags: "u32", test_reg: "u32" });

const IOMMU_HWPT_DATA_SELFTEST = 0xdead;
const MOCK_IOMMUPT_HUGE = 1;
const iommu_hwpt_selftest = struct("iommu_hwpt_selftest", { iotlb: "u32", pagetable_type: "u32" });

/** IOMMUFD_CMD_BASE + 32 */
export const IOMMU_TEST_CMD = { name: "IOMMU_TEST_CMD", number: _IO(";", 0x80 + 32) };

/** struct iommu_test_cmd without its union, which lies at {@link UNION_OFFSET}. */
const iommu_test_cmd = struct("iommu_test_cmd", {
  size: "u32",
  op: "u32",
  id: "u32",
  __reserved: "u32",
  /** The union, as large as its largest member, `dirty`. */
  union0: "u64",
  union1: "u64",
  union2: "u64",
  union3: "u64",
  union4: "u64",
  union5: "u64",
  last: "u32",
});
const UNION_OFFSET = iommu_test_cmd.offsetOf("union0");

/** An operation: its number, and its member of the union. */
interface TestOperation<Of extends Fields> {
  readonly name: string;
  readonly op: number;
  readonly member: Struct<Of>;
}

function operation<const Of extends Fields>(name: string, op: number, fields: Of): TestOperation<Of> {
  return { name, op, member: struct(name, fields) };
}

/** Counted as in the header's anonymous enum, from IOMMU_TEST_OP_ADD_RESERVED = 1. */
export const IOMMU_TEST_OP = {
  ADD_RESERVED: operation("add_reserved", 1, { start: "u64", length: "u64" }),
  MD_CHECK_MAP: operation("check_map", 3, { iova: "u64", length: "u64", uptr: "u64" }),
  MD_CHECK_REFS: operation("check_refs", 4, { length: "u64", uptr: "u64", refs: "u32" }),
  SET_TEMP_MEMORY_LIMIT: operation("memory_limit", 9, { limit: "u32" }),
  MOCK_DOMAIN_REPLACE: operation("mock_domain_replace", 10, { pt_id: "u32" }),
  MOCK_DOMAIN_FLAGS: operation("mock_domain_flags", 12, {
    out_stdev_id: "u32",
    out_hwpt_id: "u32",
    out_idev_id: "u32",
    dev_flags: "u32",
  }),
  DIRTY: operation("dirty", 13, {
    flags: "u32",
    iova: "u64",
    length: "u64",
    page_size: "u64",
    uptr: "u64",
    out_nr_dirty: "u64",
  }),
} as const;

/**
 * IOMMU_TEST_CMD with an operation; returns its member of the union as the kernel left it.
 * @param fd of the iommufd
 * @param id what the operation is about, in the iommufd
 * @throws UapiError with the kernel's errno
 */
export function mockCommand<Of extends Fields>(
  fd: number,
  { name, op, member }: TestOperation<Of>,
  id: ObjectId,
  values: Given<Of>,
): Values<Of> {
  const command = iommu_test_cmd.encode({ size: iommu_test_cmd.size, op, id });
  member.encode(values, command, UNION_OFFSET);
  ioctl(fd, IOMMU_TEST_CMD, command, () => `mock operation ${name} on object ${id}`);
  return member.decode(command, UNION_OFFSET);
}

/** A mock device. Destroy `selftest` to remove it; while it is there `device` can't be destroyed. */
export interface MockDevice {
  /** The mock's own object, which stands for the device's driver. */
  readonly selftest: ObjectId;
  /** The bound device, as VFIO_DEVICE_BIND_IOMMUFD would return it. */
  readonly device: ObjectId;
  /** What it was attached to: for an IOAS, an HWPT that the kernel made. */
  readonly hwpt: ObjectId;
}

/**
 * IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS: makes a mock device behind the mock IOMMU, binds it, and attaches it.
 * @param pt an IOAS or an HWPT
 * @param dirtyTracking false: behind an IOMMU that can't track
 */
export function addMockDevice(fd: number, pt: ObjectId, { dirtyTracking = true } = {}): MockDevice {
  const made = mockCommand(fd, IOMMU_TEST_OP.MOCK_DOMAIN_FLAGS, pt, {
    dev_flags: dirtyTracking ? 0 : MOCK_FLAGS_DEVICE_NO_DIRTY,
  });
  return { selftest: made.out_stdev_id, device: made.out_idev_id, hwpt: made.out_hwpt_id };
}

/** IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE: attaches the device to another IOAS or HWPT; returns the HWPT that it has then. */
export function replaceMockDomain(fd: number, device: MockDevice, pt: ObjectId): ObjectId {
  return mockCommand(fd, IOMMU_TEST_OP.MOCK_DOMAIN_REPLACE, device.selftest, { pt_id: pt }).pt_id;
}

/**
 * IOMMU_TEST_OP_DIRTY: sets the dirty bits of an HWPT that is tracking, as a device's writes would; returns how many
 * were asked for.
 * @param marks bit 0 is its iova, and its granule what lies between two marks
 * @throws UapiError EINVAL for an HWPT that isn't tracking
 */
export function markDirty(fd: number, hwpt: ObjectId, marks: DirtyBitmap): bigint {
  return mockCommand(fd, IOMMU_TEST_OP.DIRTY, hwpt, {
    iova: marks.iova,
    length: marks.length,
    page_size: BigInt(marks.granule),
    uptr: addressOf(marks.words),
  }).out_nr_dirty;
}

/** IOMMU_TEST_OP_MD_CHECK_MAP. @throws UapiError EINVAL where the HWPT doesn't map `iova` onwards to exactly this memory */
export function checkMap(fd: number, hwpt: ObjectId, iova: Iova, span: MemorySpan): void {
  mockCommand(fd, IOMMU_TEST_OP.MD_CHECK_MAP, hwpt, {
    iova,
    length: BigInt(span.length),
    uptr: addressOf(span.arena.u8) + BigInt(span.offset),
  });
}

/** IOMMU_TEST_OP_MD_CHECK_REFS. @throws UapiError EIO where a page of this memory isn't pinned `pins` times */
export function checkPins(fd: number, span: MemorySpan, pins: number): void {
  mockCommand(fd, IOMMU_TEST_OP.MD_CHECK_REFS, 0, {
    length: BigInt(span.length),
    uptr: addressOf(span.arena.u8) + BigInt(span.offset),
    refs: pins,
  });
}

/** IOMMU_TEST_OP_ADD_RESERVED: `length` bytes from `start` on that can't be mapped in the IOAS any more. */
export function addReserved(fd: number, ioas: ObjectId, start: Iova, length: bigint): void {
  mockCommand(fd, IOMMU_TEST_OP.ADD_RESERVED, ioas, { start, length });
}

/** What the limit is at boot. */
export const DEFAULT_TEMP_MEMORY = 65536;

/** IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: the most that iommufd batches at once, for the whole kernel. 12 bytes or more. */
export function setTempMemoryLimit(fd: number, bytes: number): void {
  mockCommand(fd, IOMMU_TEST_OP.SET_TEMP_MEMORY_LIMIT, 0, { limit: bytes });
}

/** IOMMU_HWPT_ALLOC of mock page tables with pages of 4 KiB and 1 MiB and the AMD format's own aperture. */
export function allocHugeHwpt(
  fd: number,
  { device, ioas, dirtyTracking }: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean },
): ObjectId {
  const data = iommu_hwpt_selftest.encode({ pagetable_type: MOCK_IOMMUPT_HUGE });
  const command = iommu_hwpt_alloc.encode({
    size: iommu_hwpt_alloc.size,
    flags: dirtyTracking ? IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0,
    dev_id: device,
    pt_id: ioas,
    data_type: IOMMU_HWPT_DATA_SELFTEST,
    data_len: data.length,
    data_uptr: addressOf(data),
  });
  ioctl(fd, IOMMU_HWPT_ALLOC, command, () => `make a mock HWPT with huge pages on IOAS ${ioas}`);
  return iommu_hwpt_alloc.decode(command).out_hwpt_id;
}
