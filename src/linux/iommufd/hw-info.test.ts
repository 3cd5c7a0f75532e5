import { describe, expect, it } from "vitest";
import { GiB, KiB, MiB } from "../../memory/address.js";
import {
  IOMMU_HW_INFO_TYPE,
  iommu_hw_info_amd,
  iommu_hw_info_arm_smmuv3,
  iommu_hw_info_vtd,
} from "../../uapi/iommufd.js";
import { decodeHwInfo } from "./hw-info.js";

describe("what IOMMU_GET_HW_INFO answers", () => {
  it("is decoded for VT-d: 2 MiB and 1 GiB by SSLPS", () => {
    for (const [sslps, sizes] of [
      [0n, [4 * KiB]],
      [1n, [4 * KiB, 2 * MiB]],
      [3n, [4 * KiB, 2 * MiB, 1 * GiB]],
    ] as const) {
      // Bits 37:34, with all others set where they should not matter.
      const data = iommu_hw_info_vtd.encode({ cap_reg: (sslps << 34n) | (0xffn << 40n) | 0xffn });
      const info = decodeHwInfo({ type: IOMMU_HW_INFO_TYPE.INTEL_VTD, capabilities: 1n, data });
      expect(info).toEqual({ type: "intel-vtd", dirtyTracking: true, pageSizes: sizes, data });
    }
  });

  it("is decoded for SMMUv3: the pages and blocks of each granule of IDR5", () => {
    const data = iommu_hw_info_arm_smmuv3.encode({ idr: [0, 0, 0, 0, 0, (1 << 4) | (1 << 6) | 5] });
    const { type, pageSizes } = decodeHwInfo({ type: IOMMU_HW_INFO_TYPE.ARM_SMMUV3, capabilities: 0n, data });
    expect([type, pageSizes]).toEqual(["arm-smmuv3", [4 * KiB, 64 * KiB, 2 * MiB, 512 * MiB, 1 * GiB]]);
  });

  it("is decoded for AMD: every power of two that a table of so many levels can have as a leaf, but 512 GiB", () => {
    const sizes = (hats: bigint) => {
      const data = iommu_hw_info_amd.encode({ efr: (hats << 10n) | (1n << 52n) });
      return decodeHwInfo({ type: IOMMU_HW_INFO_TYPE.AMD, capabilities: 0n, data }).pageSizes;
    };
    expect([sizes(0n)[0], sizes(0n).at(-1), sizes(2n).at(-1)]).toEqual([4 * KiB, 2 ** 47, 2 ** 51]);
    expect(sizes(0n)).toContain(64 * KiB);
    expect(sizes(0n)).not.toContain(512 * GiB);
  });

  it("tells no page sizes for a type that isn't known, for none, and for data that is cut short", () => {
    const data = new Uint8Array(8);
    expect(decodeHwInfo({ type: 0xfeedbeef, capabilities: 1n, data })).toEqual({
      type: "other",
      dirtyTracking: true,
      pageSizes: [],
      data,
    });
    expect(decodeHwInfo({ type: IOMMU_HW_INFO_TYPE.NONE, capabilities: 0n, data }).type).toBe("none");
    expect(decodeHwInfo({ type: IOMMU_HW_INFO_TYPE.AMD, capabilities: 0n, data })).toMatchObject({
      type: "amd",
      pageSizes: [],
    });
  });
});
