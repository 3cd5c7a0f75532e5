import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtmapError } from "../../errors.js";
import {
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  vfio_info_cap_header,
  vfio_iommu_type1_info,
  vfio_iommu_type1_info_cap_iova_range,
  vfio_iommu_type1_info_cap_migration,
  vfio_iommu_type1_info_dma_avail,
  vfio_iova_range,
} from "../../uapi/vfio.js";
import { decodeType1Info } from "./info.js";

const BOTH = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
const INFO = { flags: BOTH, iova_pgsizes: 0x4020_1000n, cap_offset: vfio_iommu_type1_info.size };

/** An answer with the capabilities that Linux 7.2 gives with an IOMMU, in its order. */
function answer(): Uint8Array {
  const bytes = new Uint8Array(24 + 32 + 16 + 16 + 2 * 16);
  vfio_iommu_type1_info.encode({ ...INFO, argsz: bytes.length }, bytes);
  const migration = { header: { id: 2, version: 1, next: 56 }, pgsize_bitmap: 4096n, max_dirty_bitmap_size: 1n << 28n };
  vfio_iommu_type1_info_cap_migration.encode(migration, bytes, 24);
  vfio_iommu_type1_info_dma_avail.encode({ header: { id: 3, version: 1, next: 72 }, avail: 65535 }, bytes, 56);
  vfio_iommu_type1_info_cap_iova_range.encode({ header: { id: 1, version: 1, next: 0 }, nr_iovas: 2 }, bytes, 72);
  vfio_iova_range.encode({ start: 0n, end: 0xfedfffffn }, bytes, 88);
  vfio_iova_range.encode({ start: 0xfef00000n, end: (1n << 39n) - 1n }, bytes, 104);
  return bytes;
}

describe("what VFIO_IOMMU_GET_INFO answers", () => {
  it("is the smallest page, what can be mapped, dirty pages and the mappings that are left", () => {
    expect(decodeType1Info(answer())).toEqual({
      pageSize: 4096,
      iovaRanges: [
        { start: 0n, last: 0xfedfffffn },
        { start: 0xfef00000n, last: (1n << 39n) - 1n },
      ],
      dirtyPages: { pageSize: 4096, maxBitmapBytes: 1n << 28n },
      mappingsLeft: 65535,
    });
  });

  it("has no limits and no dirty pages without those capabilities, or with versions that are not known", () => {
    const none = { iovaRanges: null, dirtyPages: null, mappingsLeft: null, pageSize: 4096 };
    expect(decodeType1Info(vfio_iommu_type1_info.encode({ ...INFO, flags: VFIO_IOMMU_INFO_PGSIZES }))).toEqual(none);
    const later = answer();
    for (const [offset, next] of [[24, 56] as const, [56, 72] as const, [72, 0] as const]) {
      const { id } = vfio_info_cap_header.decode(later, offset);
      vfio_info_cap_header.encode({ id, version: 2, next }, later, offset);
    }
    expect(decodeType1Info(later)).toEqual(none);
  });

  it("is refused where the chain leaves it, never ends, or says more than is there", () => {
    const broken = (change: (bytes: Uint8Array) => void) => {
      const bytes = answer();
      change(bytes);
      return () => decodeType1Info(bytes);
    };
    const header = (offset: number, next: number) => (bytes: Uint8Array) => {
      vfio_info_cap_header.encode({ ...vfio_info_cap_header.decode(bytes, offset), next }, bytes, offset);
    };
    expect(broken(header(24, 24))).toThrow("comes back to 24");
    expect(broken(header(72, 56))).toThrow("comes back to 56");
    expect(broken(header(72, 4096))).toThrow("goes on at 4096 of 120 bytes");
    expect(broken(header(24, 118))).toThrow("goes on at 118 of 120 bytes");
    expect(broken((bytes) => new DataView(bytes.buffer).setUint32(80, 3, true))).toThrow("3 ranges, where 2 fit");
    expect(broken((bytes) => new DataView(bytes.buffer).setBigUint64(88, 1n << 40n, true))).toThrow("a range from");
    expect(broken((bytes) => new DataView(bytes.buffer).setBigUint64(8, 0n, true))).toThrow("the page sizes 0");
    expect(() => decodeType1Info(answer().subarray(0, 20))).toThrow(DirtmapError);
    expect(() => decodeType1Info(answer().subarray(0, 40))).toThrow(DirtmapError);
  });

  it("never makes the decoder hang, read outside, or throw anything but a DirtmapError, whatever it is", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 24, maxLength: 200 }), fc.boolean(), (noise, plausible) => {
        const bytes = plausible ? Uint8Array.from([...answer().subarray(0, 24), ...noise]) : noise;
        try {
          const { iovaRanges } = decodeType1Info(bytes);
          expect((iovaRanges?.length ?? 0) * 16).toBeLessThanOrEqual(bytes.length);
        } catch (error) {
          expect(error).toBeInstanceOf(DirtmapError);
        }
      }),
    );
  });
});
