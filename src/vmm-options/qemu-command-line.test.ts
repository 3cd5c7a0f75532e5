import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UsageError } from "../errors.js";
import { MiB } from "../memory/address.js";
import { isDeviceId } from "../tracking/owner.js";
import { vmmDevices } from "./fake-devices.test.helper.js";
import { qemuOptions, qemuText } from "./qemu-command-line.js";

function notes(...given: Parameters<typeof vmmDevices>): string[] {
  return qemuOptions(vmmDevices(...given)).notes.map(({ devices, text }) => `${devices.join(", ")}: ${text}`);
}

describe("the options", () => {
  test("objects come before the devices that use them, and none is unused", () => {
    const { arguments: options } = qemuOptions(vmmDevices({ old0: {}, nic0: { iommu: true }, gpu0: { mdev: true } }));
    expect(options.map(({ option, value }) => `${option} ${value}`)).toEqual([
      "-object iommufd,id=dirtmap-hwpt",
      "-object iommufd,id=dirtmap-untracked",
      "-device vfio-pci,id=vfio-old0,host=0000:3b:00.0,iommufd=dirtmap-untracked,enable-migration=on",
      "-device vfio-pci,id=vfio-nic0,host=0000:3b:01.0,iommufd=dirtmap-hwpt,enable-migration=auto",
      "-device vfio-pci,id=vfio-gpu0,sysfsdev=/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1002,enable-migration=on",
    ]);
  });

  test("the oldest QEMU follows from what is used", () => {
    const oldest = (...given: Parameters<typeof vmmDevices>) => qemuOptions(vmmDevices(...given)).oldest.version;
    expect(oldest({ gpu0: { mdev: true } })).toBe("8.1");
    expect(oldest({ mlx0: { own: true } })).toBe("9.0");
    expect(oldest({ nic0: { iommu: true } })).toBe("9.1");
    expect(oldest({ mlx0: { own: true } }, { trackers: { mlx0: "everything" } })).toBe("9.1");
  });

  test("an address that isn't one is refused, so that no option can be smuggled in", () => {
    const [device] = vmmDevices({ mlx0: { own: true } });
    const address = { bus: "pci", address: "0000:3b:00.0,x-no-mmap=on" } as const;
    expect(() => qemuOptions([{ ...device, address }])).toThrow(UsageError);
  });

  test("without devices there is nothing to print", () => {
    expect(qemuText(qemuOptions([]))).toBe("");
  });

  test("whatever devices are called, each line of the text is a comment or one option", () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.string({ minLength: 1, unit: "grapheme" }), { maxLength: 6 }), (ids) => {
        const named = ids.map((id) => `${id}x`).filter(isDeviceId);
        const devices = vmmDevices(Object.fromEntries(named.map((id, index) => [id, { own: index % 2 === 0 }])));
        for (const line of qemuText(qemuOptions(devices))
          .split("\n")
          .filter((text) => text !== "")) {
          expect(line).toMatch(/^(# .*|-object iommufd,id=[a-z-]+|-device vfio-pci,[A-Za-z0-9=,:.-]+)$/);
        }
      }),
    );
  });
});

describe("a note says where QEMU does otherwise than was chosen:", () => {
  test("a granule of its own", () => {
    expect(notes({ mlx0: { own: true } }, { granules: { mlx0: 65536 } })).toEqual([
      "mlx0: QEMU always asks for a bit per page of the host, not per 65536 bytes.",
    ]);
    expect(notes({ mlx0: { own: true } })).toEqual([]);
  });

  test("small pages for the sake of precision", () => {
    expect(notes({ nic0: { iommu: true }, nic1: { iommu: true } }, { domain: "shared" })).toEqual([
      expect.stringMatching(/^nic0, nic1: QEMU can't set IOMMU_OPTION_HUGE_PAGES = 0/),
    ]);
    expect(notes({ nic0: { iommu: true } }, { granules: { nic0: 2 * MiB } })).toEqual([
      "nic0: QEMU always asks for a bit per page of the host, not per 2097152 bytes.",
    ]);
  });

  test("AMD's contiguous leaves, which Linux reports one entry short", () => {
    const note = expect.stringMatching(/^nic0: Linux from 6\.19 .* writes can be lost\. .*amd_iommu=nohugepages/);
    const granules = { nic0: 2 * MiB };
    expect(notes({ nic0: { iommu: true, type: "amd" } }, { granules })).toContainEqual(note);
    expect(notes({ nic0: { iommu: true, type: "intel-vtd" } }, { granules })).not.toContainEqual(note);
    expect(notes({ nic0: { own: true, iommu: true, type: "amd" } }, { order: "device-first" })).toEqual([]);
  });

  test("an HWPT each", () => {
    expect(notes({ mlx0: { own: true }, mlx1: { own: true } })).toEqual([
      expect.stringContaining("mlx0, mlx1 don't get one each"),
    ]);
  });

  test("a domain that devices with different trackers share", () => {
    const policy = { domain: "shared", trackers: { mlx0: "device" } } as const;
    expect(notes({ mlx0: { own: true, iommu: true }, nic0: { iommu: true } }, policy)).toEqual([
      expect.stringContaining("nic0: QEMU can't set IOMMU_OPTION_HUGE_PAGES"),
      expect.stringContaining("2 times the size of the guest"),
      expect.stringContaining("mlx0, nic0 can't share a domain"),
    ]);
  });

  test("a device that is suspended", () => {
    expect(notes({ old0: {} }, { untracked: "suspend" })).toEqual([
      expect.stringMatching(/^old0: QEMU can't suspend a single device\. Unplug it/),
    ]);
  });

  test("a device without a tracker", () => {
    expect(notes({ old0: {} })).toEqual([
      expect.stringMatching(/^old0: Pre-copy never gets below all of guest memory/),
    ]);
    expect(notes({ nic0: { iommu: true } }, { trackers: { nic0: "everything" } })).toEqual([
      expect.stringMatching(/^nic0: QEMU can't leave its IOMMU's dirty tracking unused/),
    ]);
  });

  test("mdevs, whose pins type1 knows", () => {
    const type1 = "type1 is needed behind /dev/vfio/vfio";
    expect(notes({ gpu0: { mdev: true, own: true } })).toEqual([]);
    expect(notes({ gpu0: { mdev: true } })).toEqual([
      expect.stringContaining("type1 knows what it has pinned"),
      expect.stringContaining(type1),
    ]);
    expect(notes({ gpu0: { mdev: true, iommu: true } })).toEqual([
      expect.stringContaining("no tracker that mdevs share: what it has pinned is read"),
      expect.stringContaining(type1),
    ]);
  });

  test("an IOMMU group with different trackers", () => {
    const group = "7";
    const policy = { order: "device-first", domain: "shared" } as const;
    const mixed = notes({ mlx0: { own: true, iommu: true, group }, nic0: { iommu: true, group } }, policy);
    expect(mixed).toContainEqual(expect.stringMatching(/^mlx0: The devices of IOMMU group 7 have different trackers/));
  });

  test("several devices of which one has no P2P states, or one that can't migrate at all", () => {
    expect(notes({ mlx0: { own: true, p2p: false } })).toEqual([]);
    expect(notes({ mlx0: { own: true, p2p: false }, mlx1: { own: true } }, { domain: "shared" })).toEqual([
      expect.stringMatching(/only if all have the P2P states, and mlx0 has not/),
    ]);
    expect(notes({ mlx0: { own: true, stop: false } })).toEqual([expect.stringMatching(/^mlx0: It can't migrate/)]);
  });
});
