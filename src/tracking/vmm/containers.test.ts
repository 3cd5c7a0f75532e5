import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UNTRACKED } from "../choice.js";
import { type ContainerKind, type Placement, placeDevices } from "./containers.js";
import { type VmmParts, vmmDevices } from "./fake-devices.test.helper.js";

/** What QEMU reads for the devices of one container, by its rule; `unseen`: a device whose writes it misses. */
function readByQemu(kind: ContainerKind, members: readonly Placement[]) {
  const migrating = members.filter(
    ({ enableMigration, device }) => enableMigration !== "off" && device.capabilities.migration,
  );
  const logs = members.every(
    ({ device, logOff }) =>
      migrating.length === members.length && device.capabilities.flags.tracksInternally && !logOff,
  );
  return (member: Placement): "log" | "hwpt" | "pins" | "everything" | "unseen" => {
    if (logs) return "log";
    if (kind === "type1") return "pins";
    const tracks = ({ device }: Placement) => device.capabilities.iommu?.dirtyTracking === true;
    if (!members.some(tracks)) return "everything";
    return tracks(member) ? "hwpt" : "unseen";
  };
}

function read(placements: readonly Placement[]): Record<string, string> {
  // What is suspended is unplugged when a migration starts.
  const staying = placements.filter(({ device }) => !device.choice.suspend);
  return Object.fromEntries(
    staying.map((placement) => {
      const members = staying.filter(({ container }) => container === placement.container);
      return [placement.device.choice.device, readByQemu(placement.container, members)(placement)];
    }),
  );
}

const kinds = (placements: readonly Placement[]) => placements.map(({ container }) => container);

describe("where devices are put", () => {
  test("devices with different trackers don't share a container", () => {
    const devices = vmmDevices(
      { mlx0: { own: true, iommu: true }, nic0: { iommu: true }, old0: {}, gpu0: { mdev: true } },
      { order: "device-first" },
    );
    const placements = placeDevices(devices);
    expect(kinds(placements)).toEqual(["log", "hwpt", "untracked", "type1"]);
    expect(read(placements)).toEqual({ mlx0: "log", nic0: "hwpt", old0: "everything", gpu0: "pins" });
  });

  test("a device with a log that is to be tracked by its HWPT has its log switched off", () => {
    const placements = placeDevices(vmmDevices({ mlx0: { own: true, iommu: true } }));
    expect(placements[0]).toMatchObject({ container: "hwpt", logOff: true, enableMigration: "auto" });
    expect(read(placements)).toEqual({ mlx0: "hwpt" });
  });

  test("migration is forced only where no tracker is meant to be there", () => {
    const placements = placeDevices(vmmDevices({ old0: {}, stuck0: { stop: false }, gpu0: { mdev: true } }));
    expect(placements.map(({ enableMigration }) => enableMigration)).toEqual(["on", "auto", "on"]);
  });

  test("an mdev with a log of its pins goes by iommufd; for libvirt, which can't do that, by type1", () => {
    const devices = vmmDevices({ gpu0: { mdev: true, own: true } });
    expect(placeDevices(devices)[0]).toMatchObject({ container: "log", logOff: false });
    expect(placeDevices(devices, "type1")[0]).toMatchObject({ container: "type1", logOff: true });
  });

  test("a device that is to be suspended blocks migration, and needs no container of its own", () => {
    const policy = { untracked: "suspend", trackers: { mlx0: "device" } } as const;
    const placements = placeDevices(vmmDevices({ old0: {}, mlx0: { own: true } }, policy));
    expect(kinds(placements)).toEqual(["log", "log"]);
    expect(placements[0].enableMigration).toBe("off");
  });

  test("a device on a tracking HWPT that is to be suspended stays away from devices without a tracker", () => {
    const policy = { trackers: { nic0: "everything" }, untrackedDevices: { nic0: "suspend" } } as const;
    const placements = placeDevices(vmmDevices({ nic0: { iommu: true }, old0: {} }, policy));
    expect(kinds(placements)).toEqual(["hwpt", "untracked"]);
  });

  test("an IOMMU group stays together, with the tracker that all its devices have", () => {
    const group = "7";
    const policy = { order: "device-first" } as const;
    const tracked = vmmDevices({ mlx0: { own: true, iommu: true, group }, nic0: { iommu: true, group } }, policy);
    expect(read(placeDevices(tracked))).toEqual({ mlx0: "hwpt", nic0: "hwpt" });
    const untracked = vmmDevices({ mlx0: { own: true, group }, old0: { group }, far0: { own: true } }, policy);
    expect(read(placeDevices(untracked))).toEqual({ mlx0: "everything", old0: "everything", far0: "log" });
  });
});

test("whatever is chosen, QEMU misses no device's writes, and reads the tracker that was chosen", () => {
  const flag = fc.boolean();
  const parts = fc.record({ mdev: flag, iommu: flag, own: flag });
  fc.assert(
    fc.property(
      fc.array(parts, { maxLength: 8 }),
      fc.constantFrom("iommu-first", "device-first"),
      fc.constantFrom("per-device", "shared"),
      fc.constantFrom(...UNTRACKED.filter((fate) => fate !== "refuse")),
      fc.constantFrom("iommufd", "type1"),
      (list, order, domain, untracked, mdevs) => {
        const named: Record<string, VmmParts> = {};
        for (const [index, part] of list.entries()) named[`dev${index}`] = part;
        const devices = vmmDevices(named, { order, domain, untracked });
        const placements = placeDevices(devices, mdevs);
        const seen = read(placements);
        for (const { choice, capabilities } of devices) {
          if (choice.suspend) continue;
          const pins = mdevs === "iommufd" && capabilities.flags.tracksInternally ? "log" : "pins";
          const expected = { iommu: "hwpt", device: "log", pinned: pins, everything: "everything" }[choice.tracker];
          const nearest = capabilities.mdev ? (choice.tracker === "everything" ? "pins" : pins) : expected;
          expect(seen[choice.device]).toBe(nearest);
        }
      },
    ),
  );
});

test("in any mix of IOMMU groups, QEMU misses no device's writes, and no group is in two iommufds", () => {
  const parts = fc.record({ own: fc.boolean(), group: fc.constantFrom("1", "2", "3") });
  fc.assert(
    fc.property(
      fc.array(parts, { maxLength: 8 }),
      fc.subarray(["1", "2", "3"]),
      fc.boolean(),
      (list, tracking, suspend) => {
        const named: Record<string, VmmParts> = {};
        // Devices of a group are behind the same IOMMU.
        for (const [index, part] of list.entries())
          named[`dev${index}`] = { ...part, iommu: tracking.includes(part.group) };
        const devices = vmmDevices(named, { order: "device-first", untracked: suspend ? "suspend" : "everything" });
        const placements = placeDevices(devices);
        expect(Object.values(read(placements))).not.toContain("unseen");
        for (const group of ["1", "2", "3"]) {
          const containers = placements
            .filter(({ device }) => device.iommuGroup === group)
            .map(({ container }) => container);
          expect(new Set(containers).size).toBeLessThanOrEqual(1);
        }
      },
    ),
  );
});
