import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { MemorySpan, ObjectId } from "../../src/host/host.js";
import type { Iova } from "../../src/memory/address.js";
import { addressOf } from "../../src/sys/address.js";
import { ioctl } from "../../src/sys/ioctl.js";
import { IOMMU_HWPT_ALLOC, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, iommu_hwpt_alloc } from "../../src/uapi/iommufd.js";
import type { Fields, Given, Values } from "../../src/uapi/struct.js";
import {
  IOMMU_HWPT_DATA_SELFTEST,
  IOMMU_TEST_CMD,
  IOMMU_TEST_OP,
  iommu_hwpt_selftest,
  iommu_test_cmd,
  MOCK_FLAGS_DEVICE_NO_DIRTY,
  MOCK_IOMMUPT_HUGE,
  type TestOperation,
} from "./uapi/iommufd-test.js";

/*
 * The kernel's mock IOMMU (CONFIG_IOMMUFD_TEST): the operations of it that tests need. A mock device is attached from its
 * making to its destruction; its page tables are AMD v1 ones, of which nobody but a test sets the dirty bits.
 */

/**
 * IOMMU_TEST_CMD with an operation; returns its member of the union as the kernel left it.
 * @param fd of the iommufd
 * @param id what the operation is about, in the iommufd
 * @throws UapiError with the kernel's errno
 */
export function mockCommand<Of extends Fields>(
  fd: number,
  { op, member }: TestOperation<Of>,
  id: ObjectId,
  values: Given<Of>,
): Values<Of> {
  const command = iommu_test_cmd.encode({ size: iommu_test_cmd.size, op, id });
  const union = iommu_test_cmd.offsetOf("union");
  member.encode(values, command, union);
  ioctl(fd, IOMMU_TEST_CMD, command, () => `${member.name} on object ${id}`);
  return member.decode(command, union);
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
