import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Answer } from "../tracking/capabilities.js";
import { UNTRACKED } from "../tracking/choice.js";
import { type Container, type Placement, placeDevices } from "./containers.js";
import { type VmmParts, vmmDevices } from "./fake-devices.test.helper.js";

/** How a question about a device turns out that nothing answered beforehand. */
type Truth = (device: string, question: "log" | "hwpt" | "migration") => boolean;

/** What QEMU reads for the devices of one container, by its rule; `unseen`: a device whose writes it misses. */
function readByQemu({ iommufd }: Container, members: readonly Placement[], truth: Truth) {
  const is = (known: Answer, { device }: Placement, question: "log" | "hwpt") =>
    known === "unknown" ? truth(device.choice.device, question) : known;
  const hasLog = (member: Placement) => is(member.device.capabilities.flags.tracksInternally, member, "log");
  const logs = members.every((member) => migrates(member, truth) && hasLog(member) && !member.logOff);
  const tracks = (member: Placement) => is(member.device.capabilities.iommu?.dirtyTracking ?? false, member, "hwpt");
  return (member: Placement): "log" | "hwpt" | "pins" | "everything" | "unseen" | "blocked" => {
    // `auto` refuses to migrate a device with neither; a log that is switched off is none.
    const tracked = (hasLog(member) && !member.logOff) || (iommufd !== null && tracks(member));
    if (member.enableMigration === "auto" && !tracked) return "blocked";
    if (logs) return "log";
    if (iommufd === null) return members.every(({ device }) => device.capabilities.mdev) ? "pins" : "everything";
    if (!members.some(tracks)) return "everything";
    return tracks(member) ? "hwpt" : "unseen";
  };
}

function migrates({ enableMigration, device: { choice, capabilities } }: Placement, truth: Truth): boolean {
  if (enableMigration === "off") return false;
  return capabilities.migration === "unknown" ? truth(choice.device, "migration") : capabilities.migration !== null;
}

function read(placements: readonly Placement[], truth: Truth = () => false): Record<string, string> {
  // What is suspended is unplugged when a migration starts.
  const staying = placements.filter(({ device }) => !device.choice.suspend);
  return Object.fromEntries(
    staying.map((placement) => {
      const { iommufd } = placement.container;
      const members = staying.filter(({ container }) => container.iommufd === iommufd);
      return [placement.device.choice.device, readByQemu(placement.container, members, truth)(placement)];
    }),
  );
}

const kinds = (placements: readonly Placement[]) => placements.map(({ container }) => container.iommufd ?? "type1");

describe("where devices are put", () => {
  test("devices with different trackers don't share a container", () => {
    const devices = vmmDevices(
      { mlx0: { own: true, iommu: true }, nic0: { iommu: true }, old0: {}, gpu0: { mdev: true } },
      { order: "device-first" },
    );
    const placements = placeDevices(devices);
    expect(kinds(placements)).toEqual(["dirtmap-log", "dirtmap-hwpt", "dirtmap-untracked", "type1"]);
    expect(read(placements)).toEqual({ mlx0: "log", nic0: "hwpt", old0: "everything", gpu0: "pins" });
  });

  test("a device with a log that is to be tracked by its HWPT has its log switched off", () => {
    const placements = placeDevices(vmmDevices({ mlx0: { own: true, iommu: true } }));
    expect(placements[0]).toMatchObject({ container: { reads: "hwpt" }, logOff: true, enableMigration: "auto" });
    expect(read(placements)).toEqual({ mlx0: "hwpt" });
  });

  test("migration is forced only where no tracker is meant to be there", () => {
    const placements = placeDevices(vmmDevices({ old0: {}, stuck0: { stop: false }, gpu0: { mdev: true } }));
    expect(placements.map(({ enableMigration }) => enableMigration)).toEqual(["on", "auto", "on"]);
  });

  test("an mdev with a log of its pins goes by iommufd; for libvirt, which can't do that, by type1", () => {
    const devices = vmmDevices({ gpu0: { mdev: true, own: true } });
    expect(placeDevices(devices)[0]).toMatchObject({ container: { iommufd: "dirtmap-log" }, logOff: false });
    expect(placeDevices(devices, { mdevs: "type1" })[0]).toMatchObject({
      container: { iommufd: null, reads: "pins" },
      logOff: true,
    });
  });

  test("a device that is to be suspended blocks migration, and needs no container of its own", () => {
    const policy = { untracked: "suspend", trackers: { mlx0: "device" } } as const;
    const placements = placeDevices(vmmDevices({ old0: {}, mlx0: { own: true } }, policy));
    expect(kinds(placements)).toEqual(["dirtmap-log", "dirtmap-log"]);
    expect(placements[0].enableMigration).toBe("off");
  });

  test("a device on a tracking HWPT that is to be suspended stays away from devices without a tracker", () => {
    const policy = { trackers: { nic0: "everything" }, untrackedDevices: { nic0: "suspend" } } as const;
    const placements = placeDevices(vmmDevices({ nic0: { iommu: true }, old0: {} }, policy));
    expect(kinds(placements)).toEqual(["dirtmap-hwpt", "dirtmap-untracked"]);
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
        const placements = placeDevices(devices, { mdevs });
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

describe("what isn't known of a device", () => {
  test("keeps it apart from those for which the answer may be another", () => {
    const placements = placeDevices(vmmDevices({ nic0: { iommu: true }, dark0: { iommu: "unknown" }, old0: {} }));
    expect(kinds(placements)).toEqual(["dirtmap-hwpt", "dirtmap-unknown-group-of-dark0", "dirtmap-untracked"]);
  });

  test("is the same for devices behind one IOMMU, which share a container", () => {
    const unit = "smmu3.0x09050000";
    const devices = vmmDevices({ nic0: { iommu: "unknown", unit }, nic1: { iommu: "unknown", unit } });
    expect(kinds(placeDevices(devices))).toEqual(Array(2).fill("dirtmap-unknown-smmu3-0x09050000"));
  });

  test("never forces a migration", () => {
    const [{ enableMigration, logOff }] = placeDevices(vmmDevices({ new0: { own: "unknown", stop: "unknown" } }));
    expect({ enableMigration, logOff }).toEqual({ enableMigration: "auto", logOff: true });
  });
});

describe("without iommufd", () => {
  test("all devices are in the legacy container, whose logs are read if all have one in use", () => {
    const both = vmmDevices({ mlx0: { own: true }, mlx1: { own: true } }, { order: "device-first" });
    expect(read(placeDevices(both, { iommufd: false }))).toEqual({ mlx0: "log", mlx1: "log" });
    const mixed = placeDevices(vmmDevices({ mlx0: { own: true }, old0: {} }), { iommufd: false });
    expect(mixed.map(({ container }) => container)).toEqual(Array(2).fill({ iommufd: null, reads: "everything" }));
  });
});

test("whatever turns out, with iommufd or without, QEMU misses no device's writes", () => {
  const answer = fc.constantFrom<Answer>(true, false, "unknown");
  const unit = fc.constantFrom("dmar0", "dmar1", undefined);
  const parts = fc.record({ mdev: fc.boolean(), iommu: answer, own: answer, stop: answer, unit });
  fc.assert(
    fc.property(
      fc.array(parts, { maxLength: 8 }),
      fc.array(fc.boolean(), { minLength: 24, maxLength: 24 }),
      fc.dictionary(fc.constantFrom("dev0", "dev1", "dev2"), fc.constantFrom("iommu", "device", "everything"), {
        noNullPrototype: true,
      }),
      fc.constantFrom("per-device", "shared"),
      fc.record({ iommufd: fc.boolean(), mdevs: fc.constantFrom("iommufd", "type1") }),
      (list, answers, asked, domain, host) => {
        const named: Record<string, VmmParts> = {};
        for (const [index, { unit: of, ...part }] of list.entries()) {
          named[`dev${index}`] = of === undefined ? part : { ...part, unit: of };
        }
        // What is asked for and isn't there is refused before any VMM comes in.
        const trackers = Object.fromEntries(
          Object.entries(asked).filter(([id, kind]) => {
            const part = named[id];
            if (part === undefined) return false;
            if (kind === "device") return part.mdev !== true && part.own !== false;
            return kind !== "iommu" || part.iommu !== false;
          }),
        );
        // Devices behind one IOMMU get the same answer.
        const truth: Truth = (id, question) => {
          const index = Number(id.slice(3));
          const from = question === "hwpt" ? ["dmar0", "dmar1"].indexOf(named[id].unit ?? "") + 1 || index + 2 : index;
          return answers[(from + { log: 0, hwpt: 8, migration: 13 }[question]) % answers.length];
        };
        const placements = placeDevices(vmmDevices(named, { trackers, domain }), host);
        // A device that can't migrate, or that QEMU blocks, is unplugged before there is a migration.
        const able = placements.filter((placement) => migrates(placement, truth));
        const blocked = Object.entries(read(able, truth)).filter(([, what]) => what === "blocked");
        const staying = able.filter(({ device }) => !blocked.some(([id]) => id === device.choice.device));
        expect(Object.values(read(staying, truth))).not.toContain("unseen");
      },
    ),
    { numRuns: 1000 },
  );
});
