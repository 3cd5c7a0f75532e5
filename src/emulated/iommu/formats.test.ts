import { describe, expect, it } from "vitest";
import { IOMMU_FORMATS } from "../../host/description.js";
import { amdV1 } from "./amd-v1.js";
import { armS1 } from "./arm-s1.js";
import { LEVELS, levelOf, READ, WRITE } from "./format.js";
import { FORMATS } from "./formats.js";
import { vtdSs } from "./vtd-ss.js";

const plain = { readable: true, writeable: true, dirtyTracking: true };

describe("the page-table formats", () => {
  it.each(IOMMU_FORMATS)("%s tells leaves, tables and sizes apart, whatever the address", (name) => {
    const format = FORMATS[name];
    for (const shift of format.leafShifts) {
      const { low, high } = format.leafBits({ shift, ...plain });
      for (const address of [0, 2 ** 31, 2 ** 32 - 2 ** shift]) {
        const entry = low | address;
        expect(entry & format.presentMask).not.toBe(0);
        expect(format.isLeaf(entry, levelOf(shift))).toBe(true);
        expect(format.leafShift(entry, levelOf(shift))).toBe(shift);
        expect(format.permissions(entry, high, true)).toBe(READ | WRITE);
        expect(format.recorded(entry, true) & format.dirtyMask).toBe(format.dirtyValue);
        const clean = (format.recorded(entry, true) & format.cleanAnd) | format.cleanOr;
        expect(clean & format.dirtyMask).not.toBe(format.dirtyValue);
        expect(format.permissions(clean, high, true)).toBe(READ | WRITE);
      }
    }
    for (let level = 2; level <= LEVELS; level++) {
      const { low } = format.tableEntry(0xfffff000, level);
      expect(format.isLeaf(low, level)).toBe(false);
      expect(low & format.presentMask).not.toBe(0);
    }
  });

  it.each(IOMMU_FORMATS)("%s points a device-table entry in one step, and keeps recording apart from it", (name) => {
    const format = FORMATS[name];
    const words = new Int32Array(new SharedArrayBuffer(format.deviceEntryBytes * 2));
    const at = format.deviceEntryBytes / 4;
    format.storeRoot(words, at, 0);
    expect(format.loadDeviceEntry(words, at).root).toBe(0);
    format.storeUpdates(words, at, true);
    format.storeRoot(words, at, 0xfffff000);
    expect(format.loadDeviceEntry(words, at)).toEqual({ root: 0xfffff000, updates: true });
    format.storeRoot(words, at, 0x2000);
    format.storeUpdates(words, at, false);
    expect(format.loadDeviceEntry(words, at)).toEqual({ root: 0x2000, updates: false });
    format.storeRoot(words, at, 0);
    expect(format.loadDeviceEntry(words, at).root).toBe(0);
    expect(words.subarray(0, at).every((word) => word === 0)).toBe(true);
  });

  it("AMD v1: bits as the specification has them", () => {
    // 4 KiB: PR, NextLevel 0; FC, IR, IW.
    expect(amdV1.leafBits({ shift: 12, ...plain })).toEqual({ low: 1, high: 0x70000000 });
    // 64 KiB: NextLevel 7, address bits 12 to 14 ones, bit 15 zero.
    expect(amdV1.leafBits({ shift: 16, ...plain }).low).toBe(0x7000 | 0xe00 | 1);
    // 8 KiB: address bit 12 zero.
    expect(amdV1.leafBits({ shift: 13, ...plain }).low).toBe(0xe00 | 1);
    // 2 MiB is the reach of an entry of level 2: NextLevel 0.
    expect(amdV1.leafBits({ shift: 21, ...plain }).low).toBe(1);
    expect(amdV1.leafBits({ shift: 12, readable: true, writeable: false, dirtyTracking: true }).high).toBe(0x30000000);
    expect(amdV1.tableEntry(0x5000, 4)).toEqual({ low: 0x5000 | (3 << 9) | 1, high: 0x60000000 });
    // D is bit 6, A bit 5.
    expect(amdV1.recorded(1, true)).toBe(0x61);
    expect(amdV1.recorded(1, false)).toBe(0x21);
    // Device table entry: V, TV, HAD (8:7), Mode 4 (11:9).
    const entry = new Int32Array(new SharedArrayBuffer(32));
    amdV1.storeRoot(entry, 0, 0x9000);
    amdV1.storeUpdates(entry, 0, true);
    expect([...entry.subarray(0, 2)]).toEqual([0x9000 | (4 << 9) | (3 << 7) | 3, 0x60000000]);
    // HDSup is bit 52 of the EFR.
    expect(new DataView(amdV1.hwInfoData(true).buffer).getBigUint64(0, true) & (1n << 52n)).not.toBe(0n);
    expect(new DataView(amdV1.hwInfoData(false).buffer).getBigUint64(0, true) & (1n << 52n)).toBe(0n);
  });

  it("VT-d second stage: bits as the specification has them", () => {
    expect(vtdSs.leafBits({ shift: 12, ...plain })).toEqual({ low: 3, high: 0 });
    expect(vtdSs.leafBits({ shift: 30, ...plain })).toEqual({ low: 0x83, high: 0 });
    expect(vtdSs.leafBits({ shift: 12, readable: false, writeable: true, dirtyTracking: true }).low).toBe(2);
    expect(vtdSs.recorded(3, true)).toBe(0x303);
    // PASID-table entry: P, AW 2 (4:2), PGTT 2 (8:6), SSADE (9).
    const entry = new Int32Array(new SharedArrayBuffer(64));
    vtdSs.storeRoot(entry, 0, 0x9000);
    vtdSs.storeUpdates(entry, 0, true);
    expect(entry[0]).toBe(0x9000 | (1 << 9) | (2 << 6) | (2 << 2) | 1);
    // ECAP.SSADS is bit 45.
    expect(new DataView(vtdSs.hwInfoData(true).buffer).getBigUint64(16, true) & (1n << 45n)).not.toBe(0n);
    expect(new DataView(vtdSs.hwInfoData(false).buffer).getBigUint64(16, true) & (1n << 45n)).toBe(0n);
  });

  it("Arm stage 1: writeable pages are born dirty, a clean one needs DBM and HD, and without DBM is read-only", () => {
    const DBM = 1 << 19;
    const AP2 = 1 << 7;
    const page = armS1.leafBits({ shift: 12, ...plain });
    expect(page.low & AP2).toBe(0);
    expect(page.high & DBM).toBe(DBM);
    expect(page.low & 3).toBe(3);
    expect(armS1.leafBits({ shift: 21, ...plain }).low & 3).toBe(1);
    const clean = page.low | armS1.cleanOr;
    expect(armS1.permissions(clean, page.high, true)).toBe(READ | WRITE);
    expect(armS1.permissions(clean, page.high, false)).toBe(READ);
    const readOnly = armS1.leafBits({ shift: 12, readable: true, writeable: false, dirtyTracking: true });
    expect(readOnly.low & AP2).toBe(AP2);
    expect(readOnly.high & DBM).toBe(0);
    expect(armS1.permissions(readOnly.low, readOnly.high, true)).toBe(READ);
    // Context descriptor: V (31), HD (42), HA (43).
    const entry = new Int32Array(new SharedArrayBuffer(64));
    armS1.storeRoot(entry, 0, 0x9000);
    armS1.storeUpdates(entry, 0, true);
    expect(entry[0] >>> 31).toBe(1);
    expect((entry[1] >>> 10) & 3).toBe(3);
    expect(entry[2]).toBe(0x9000);
    // IDR0.HTTU (7:6) = 2.
    expect((armS1.hwInfoData(true)[8] >>> 6) & 3).toBe(2);
    expect((armS1.hwInfoData(false)[8] >>> 6) & 3).toBe(0);
  });
});
