import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UsageError } from "../errors.js";
import { MiB } from "../memory/address.js";
import type { DeviceCapabilities } from "./capabilities.js";
import { DEFAULT_POLICY, DEVICE_TRACKERS, type Policy, UNTRACKED } from "./choice.js";
import { device } from "./fake-capabilities.test.helper.js";
import { chooseTrackers } from "./policy.js";

function choose(probed: DeviceCapabilities[], policy: Partial<Policy> = {}) {
  return chooseTrackers(probed, { ...DEFAULT_POLICY, ...policy });
}

function refusal(probed: DeviceCapabilities[], policy: Partial<Policy>): UsageError {
  try {
    choose(probed, policy);
  } catch (error) {
    if (error instanceof UsageError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

const mlx0 = device("mlx0", { iommu: true, own: true });
const nic0 = device("nic0", { iommu: true });
const old0 = device("old0", {});
const vgpu0 = device("vgpu0", { mdev: true, own: true });
const vgpu1 = device("vgpu1", { mdev: true, own: true, iommu: true });

describe("iommu-first, the thread's rule", () => {
  test("asks the iommu_domain; where it can't, the device; where that can't either, no tracker", () => {
    const own0 = device("own0", { own: true });
    const choices = choose([mlx0, nic0, own0, old0, vgpu0, vgpu1]);
    expect(choices.map(({ tracker }) => tracker)).toEqual([
      "iommu",
      "iommu",
      "device",
      "everything",
      "pinned",
      "iommu",
    ]);
  });

  test("says why, and what was passed over", () => {
    const [choice] = choose([device("own0", { own: true })]);
    expect(choice.reason).toBe("iommu-first: it has none, so the device is asked, and has its dirty bits");
    expect(choose([vgpu1])[0].reason).toBe("iommu-first: the emulated IOMMU is asked first, and has its dirty bits");
    expect(choose([mlx0])[0].alternatives).toEqual([
      { tracker: "device", why: "iommu-first asks iommu before it" },
      { tracker: "pinned", why: "it has none" },
    ]);
  });
});

describe("device-first", () => {
  test("is the reverse", () => {
    const choices = choose([mlx0, nic0, old0, vgpu1], { order: "device-first" });
    expect(choices.map(({ tracker }) => tracker)).toEqual(["device", "iommu", "everything", "pinned"]);
  });
});

describe("an untracked device", () => {
  test("counts as everything, is suspended, or is refused, as the operator wants", () => {
    expect(choose([old0])[0]).toMatchObject({ tracker: "everything", suspend: false, granule: null, domain: null });
    expect(choose([old0], { untracked: "suspend" })[0]).toMatchObject({ tracker: "everything", suspend: true });
    expect(refusal([old0], { untracked: "refuse" })).toMatchObject({ code: "UNTRACKED_DEVICE" });
  });

  test("is dealt with per device where that was said", () => {
    const policy = { untracked: "refuse", untrackedDevices: { old0: "suspend" } } as const;
    expect(choose([old0], policy)[0].suspend).toBe(true);
  });

  test("which was asked for by name counts as everything, unless it is to be suspended by name", () => {
    const trackers = { nic0: "everything" } as const;
    expect(choose([nic0], { trackers, untracked: "suspend" })[0].suspend).toBe(false);
    expect(choose([nic0], { trackers, untrackedDevices: { nic0: "suspend" } })[0].suspend).toBe(true);
  });

  test("that can't STOP can't be suspended", () => {
    const error = refusal([device("old0", { stop: false })], { untracked: "suspend" });
    expect(error).toMatchObject({ code: "CANNOT_SUSPEND", message: expect.stringContaining("old0") });
  });
});

describe("domains", () => {
  test("are one per device; tracking is off where the device has its own tracker", () => {
    const [mlx, nic] = choose([mlx0, nic0], { trackers: { mlx0: "device" } });
    expect(mlx.domain).toEqual({ key: "own:mlx0", type: "hwpt", dirtyTracking: false, hugePages: true });
    expect(nic.domain).toEqual({ key: "own:nic0", type: "hwpt", dirtyTracking: true, hugePages: false });
  });

  test("are shared if asked for: with tracking where one needs it, without for IOMMUs that can't", () => {
    const own0 = device("own0", { own: true });
    const choices = choose([mlx0, nic0, own0], { domain: "shared", trackers: { mlx0: "device" } });
    const shared = { key: "shared", type: "hwpt", dirtyTracking: true, hugePages: false };
    expect(choices[0].domain).toEqual(shared);
    expect(choices[1].domain).toEqual(shared);
    expect(choices[2].domain).toMatchObject({ key: "shared-untracked", dirtyTracking: false });
  });

  test("have tracking off if all that share one have their own trackers", () => {
    const [mlx] = choose([mlx0], { domain: "shared", order: "device-first" });
    expect(mlx.domain?.dirtyTracking).toBe(false);
  });

  test("of mdevs are the emulated IOMMU, which they always share", () => {
    const [, second] = choose([vgpu1, device("vgpu2", { mdev: true, iommu: true })]);
    expect(second.domain).toMatchObject({ key: "mdevs", type: "emulated", dirtyTracking: true });
    expect(choose([vgpu0])[0].domain).toBeNull();
  });
});

describe("granules", () => {
  test("are the smallest unless asked for", () => {
    expect(choose([mlx0, nic0], { trackers: { mlx0: "device" } }).map(({ granule }) => granule)).toEqual([4096, 4096]);
    const policy = { trackers: { mlx0: "device" }, granules: { mlx0: 65536, nic0: 2 * MiB } } as const;
    const choices = choose([mlx0, nic0], policy);
    expect(choices.map(({ granule }) => granule)).toEqual([65536, 2 * MiB]);
    expect(choices[1].domain?.hugePages).toBe(true);
  });

  test.each([
    [{ granules: { nic0: 5000 } }, "5000 bytes is no power of two", "the tracker 'iommu' takes 4K or 2M"],
    [{ granules: { nic0: 8192 } }, "has no granule of 8K", "the tracker 'iommu' takes 4K or 2M"],
    [{ granules: { nic0: 0 } }, "0 bytes is no power of two", "takes 4K or 2M"],
    [{ granules: { nic0: 4096 }, trackers: { nic0: "everything" } } as const, "gets no tracker", "leave out"],
  ])("that can't be are refused in one line that says what would work: %j", (policy, message, remedy) => {
    const error = refusal([nic0], policy);
    expect(error.code).toBe("BAD_GRANULE");
    expect(error.message).toContain(message);
    expect(error.remedy).toContain(remedy);
    expect(error.message).not.toContain("\n");
  });
});

describe("what can't be asked for", () => {
  test("an unknown device, with those that there are", () => {
    const error = refusal([nic0, mlx0], { trackers: { nix0: "iommu" } });
    expect(error).toMatchObject({ code: "UNKNOWN_DEVICE", remedy: "there are: mlx0, nic0" });
  });

  test("a tracker that the device lacks, with those that it has", () => {
    const error = refusal([nic0], { trackers: { nic0: "device" } });
    expect(error).toMatchObject({ code: "TRACKER_LACKING", remedy: "nic0 has: iommu, everything" });
  });

  test("a device named as an owner that is no device, or so that a domain's name would read as other devices", () => {
    for (const id of ["cpu", "container", "domain:nic0", "nic0+disk0"]) {
      const { message, remedy } = refusal([device(id, { iommu: true })], {});
      expect(message).toContain(`'${id}' would read as the name of another owner`);
      expect(remedy).toBe("rename the device");
    }
    expect(refusal([nic0, nic0], {}).message).toContain("'nic0' is taken");
  });
});

test("what is to happen to a device untracked is said not to apply where it has a tracker", () => {
  const [choice] = chooseTrackers([nic0], { ...DEFAULT_POLICY, untrackedDevices: { nic0: "suspend" } });
  expect(choice).toMatchObject({ suspend: false, reason: expect.stringMatching(/so that 'suspend' does not apply$/) });
});

describe("what nothing is known of", () => {
  const strange = device("new0", { own: "unknown", iommu: false, stop: "unknown" });

  test("is not chosen by itself, and said to be unknown", () => {
    expect(chooseTrackers([strange], DEFAULT_POLICY)).toMatchObject([
      { tracker: "everything", reason: expect.stringContaining("nothing tells") },
    ]);
  });

  test("is taken at the operator's word, with the doubt told", () => {
    expect(chooseTrackers([strange], { ...DEFAULT_POLICY, trackers: { new0: "device" } })).toMatchObject([
      {
        tracker: "device",
        reason: "the operator asked for 'device', and whether it is there is not known: nothing tells",
      },
    ]);
    expect(chooseTrackers([strange], { ...DEFAULT_POLICY, untracked: "suspend" })).toMatchObject([
      { suspend: true, reason: expect.stringMatching(/whether it can be stopped is not known\)$/) },
    ]);
  });

  test("stays on a tracking domain that others share only if the operator asked for that", () => {
    const shared = { ...DEFAULT_POLICY, domain: "shared" } as const;
    const dark = device("dark0", { iommu: "unknown" });
    expect(chooseTrackers([nic0, dark], shared)[1].domain).toBeNull();
    const asked = chooseTrackers([nic0, dark], { ...shared, trackers: { dark0: "iommu" } });
    expect(asked[1]).toMatchObject({ tracker: "iommu", domain: { key: "shared", dirtyTracking: true } });
  });
});

describe("a remedy names what is possible:", () => {
  const ofRefuse = (parts: Parameters<typeof device>[1]) => refusal([device("dev0", parts)], { untracked: "refuse" });

  test("to suspend only what can be stopped, or may be", () => {
    expect(ofRefuse({ stop: true }).remedy).toMatch(/everything\), or suspend it/);
    expect(ofRefuse({ stop: "unknown" }).remedy).toMatch(/suspend it/);
    expect(ofRefuse({ stop: false }).remedy).not.toMatch(/suspend/);
  });

  test("a tracker only where there is one, or may be", () => {
    expect(ofRefuse({}).remedy).not.toMatch(/--tracker/);
    const unknown = ofRefuse({ own: "unknown" });
    expect(unknown.message).toContain("dev0 has no dirty tracker that is known of");
    expect(unknown.remedy).toMatch(/--tracker dev0=device/);
    const granule = (parts: Parameters<typeof device>[1]) =>
      refusal([device("dev0", parts)], { granules: { dev0: 4096 }, trackers: { dev0: "everything" } }).remedy;
    expect(granule({})).toBe("leave out the granule of dev0");
    expect(granule({ own: true })).toBe("leave out the granule of dev0, or give it a tracker (device)");
  });
});

describe("for all devices and policies", () => {
  const answer = fc.constantFrom(true, false, "unknown" as const);
  const parts = fc.record({ mdev: fc.boolean(), iommu: answer, own: answer, stop: answer });
  const machine = fc.array(parts, { maxLength: 6 }).map((all) => all.map((part, index) => device(`dev${index}`, part)));
  const forDevices = <T>(value: fc.Arbitrary<T>) => {
    return fc.dictionary(fc.constantFrom("dev0", "dev1", "dev2", "dev9"), value, { maxKeys: 2, noNullPrototype: true });
  };
  const policies = fc.record<Policy>({
    order: fc.constantFrom("iommu-first", "device-first"),
    trackers: forDevices(fc.constantFrom(...DEVICE_TRACKERS)),
    granules: forDevices(fc.constantFrom(4096, 65536, 2 * MiB, 5000)),
    domain: fc.constantFrom("per-device", "shared"),
    untracked: fc.constantFrom(...UNTRACKED),
    untrackedDevices: forDevices(fc.constantFrom(...UNTRACKED)),
  });

  /** The choices by device, or the code of the refusal. */
  function outcome(probed: readonly DeviceCapabilities[], policy: Policy) {
    try {
      return Object.fromEntries(chooseTrackers(probed, policy).map((choice) => [choice.device, choice]));
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      return error.code;
    }
  }

  test("each device gets a choice that it can keep, or all are refused with a UsageError", () => {
    fc.assert(
      fc.property(machine, policies, (probed, policy) => {
        const choices = outcome(probed, policy);
        if (typeof choices === "string") return;
        expect(Object.keys(choices)).toEqual(probed.map(({ id }) => id));
        for (const { id, trackers, migration, iommu } of probed) {
          const { tracker, granule, domain, suspend, reason } = choices[id];
          const asked = policy.trackers[id] !== undefined;
          expect(trackers[tracker].available).toSatisfy((has) => has === true || (asked && has === "unknown"));
          if (policy.trackers[id] !== undefined) expect(tracker).toBe(policy.trackers[id]);
          if (policy.granules[id] !== undefined) expect(granule).toBe(policy.granules[id]);
          if (tracker === "iommu") expect(domain?.dirtyTracking).toBe(true);
          if (domain?.type === "hwpt" && domain.dirtyTracking) expect(iommu?.dirtyTracking).not.toBe(false);
          if (suspend) expect([tracker, migration === null]).toEqual(["everything", false]);
          expect(reason).not.toBe("");
        }
      }),
      { numRuns: 500 },
    );
  });

  test("neither the order of the devices nor asking twice changes a choice", () => {
    const shuffled = machine.chain((probed) => {
      return fc.record({
        probed: fc.constant(probed),
        other: fc.shuffledSubarray(probed, { minLength: probed.length }),
      });
    });
    fc.assert(
      fc.property(shuffled, policies, ({ probed, other }, policy) => {
        const first = outcome(probed, policy);
        const second = outcome(other, policy);
        // Several devices may be in the way; which one is named first is not promised.
        if (typeof first === "string") expect(typeof second).toBe("string");
        else expect(second).toEqual(first);
        expect(outcome(probed, policy)).toEqual(first);
      }),
      { numRuns: 300 },
    );
  });
});

describe("measurements", () => {
  const measured = (devices: Record<string, object>, unmeasured: "refuse" | "follow-order" = "refuse") => ({
    from: "bench.json",
    unmeasured,
    devices: Object.fromEntries(
      Object.entries(devices).map(([id, choice]) => {
        const of = { model: "test", tracker: "device", granule: 65536, domain: "per-device", reason: "it was faster" };
        return [id, { ...of, ...choice } as never];
      }),
    ),
  });

  test("go before the order, with their granule and their reason", () => {
    const [choice] = choose([mlx0], { measured: measured({ mlx0: {} }) });
    expect(choice).toMatchObject({ tracker: "device", granule: 65536, reason: "it was faster" });
    expect(choice.alternatives).toContainEqual({
      tracker: "iommu",
      why: "the benchmark of bench.json found another better",
    });
  });

  test("yield to what the operator asks for by name", () => {
    const policy = { measured: measured({ mlx0: { model: "other" } }), trackers: { mlx0: "iommu" } } as const;
    const [choice] = choose([mlx0], policy);
    expect(choice).toMatchObject({ tracker: "iommu", granule: 4096 });
    expect(choice.reason).toMatch(/^the operator asked/);
    const { granule } = choose([mlx0], { measured: measured({ mlx0: {} }), granules: { mlx0: 4096 } })[0];
    expect(granule).toBe(4096);
  });

  test("say per device who shares a domain", () => {
    const shared = { tracker: "iommu", granule: 4096, domain: "shared" };
    const choices = choose([mlx0, nic0, device("nic1", { iommu: true })], {
      measured: measured({ mlx0: { ...shared, domain: "per-device" }, nic0: shared, nic1: shared }),
    });
    expect(choices.map(({ domain }) => domain?.key)).toEqual(["own:mlx0", "shared", "shared"]);
  });

  test("of no tracker leave to the policy what happens to the device", () => {
    const none = { old0: { tracker: "everything", granule: null, domain: null } };
    expect(choose([old0], { measured: measured(none), untracked: "suspend" })[0].suspend).toBe(true);
    expect(refusal([old0], { measured: measured(none), untracked: "refuse" }).code).toBe("UNTRACKED_DEVICE");
  });

  test("that lack a device are refused, with the command that takes them, unless the order may be followed", () => {
    const { code, message, remedy } = refusal([mlx0, nic0], { measured: measured({ mlx0: {} }) });
    expect({ code, message }).toEqual({ code: "NOT_MEASURED", message: "bench.json has no benchmark of nic0" });
    expect(remedy).toContain("dirtmap bench trackers --device nic0");
    const choices = choose([mlx0, nic0], { measured: measured({ mlx0: {} }, "follow-order") });
    expect(choices.map(({ tracker }) => tracker)).toEqual(["device", "iommu"]);
    expect(choices[1].reason).toMatch(/^iommu-first/);
  });

  test.each([
    ["of another model", { model: "mlx4" }, "MODEL_CHANGED", "mlx0 is now test, and what bench.json measured was mlx4"],
    [
      "of a tracker that is gone",
      { tracker: "pinned" },
      "TRACKER_GONE",
      "bench.json recommends 'pinned' for mlx0, which it has no more: it has none",
    ],
    [
      "of a granule that is gone",
      { granule: 8192 },
      "TRACKER_GONE",
      "bench.json recommends a granule of 8K for mlx0, which its tracker 'device' has no more",
    ],
  ])("%s are refused", (_, choice, code, message) => {
    expect(refusal([mlx0], { measured: measured({ mlx0: choice }) })).toMatchObject({ code, message });
  });
});
