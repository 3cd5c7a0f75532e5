import { describe, expect, it } from "vitest";
import { DEFAULTS } from "../../defaults.js";
import { UNLIMITED_BANDWIDTH } from "../../evidence/trackers/estimate.js";
import { loadScenario } from "../../scenario/scenario.js";
import { linkOf, settingsOf } from "./option-scenario-default.js";

const { migration } = loadScenario(DEFAULTS.scenario);

describe("a setting", () => {
  const scenario = { ...migration, downtimeLimit: 111, channels: 3, bandwidth: 1e6, untracked: "refuse" } as const;

  it("is the option's, whatever the scenario says", () => {
    expect(settingsOf({ downtimeLimit: 22, untracked: { all: "suspend", devices: {} } }, scenario)).toMatchObject({
      downtimeLimit: 22,
      untracked: "suspend",
    });
  });

  it("is the scenario's without an option; an option for single devices says nothing of all", () => {
    expect(settingsOf({ untracked: { devices: { vf0: "suspend" } } }, scenario)).toMatchObject({
      downtimeLimit: 111,
      channels: 3,
      bandwidth: 1e6,
      untracked: "refuse",
    });
  });

  it("is the default without both", () => {
    expect(settingsOf({})).toEqual({
      policy: DEFAULTS.policy,
      unmeasured: DEFAULTS.unmeasured,
      domain: DEFAULTS.domain,
      untracked: DEFAULTS.untracked,
      design: DEFAULTS.design,
      channels: DEFAULTS.channels,
      downtimeLimit: DEFAULTS.downtimeLimitMs,
      bandwidth: DEFAULTS.bandwidth,
      runAfter: DEFAULTS.runAfterMs,
    });
  });
});

describe("the link of an estimate", () => {
  it("is a common one if nothing limits it, and what two processes reach if it has no limit", () => {
    expect(linkOf({}, migration)).toMatchObject({ bandwidth: DEFAULTS.linkBandwidth });
    expect(linkOf({ bandwidth: Number.POSITIVE_INFINITY })).toMatchObject({ bandwidth: UNLIMITED_BANDWIDTH });
    expect(linkOf({}, { bandwidth: 5e6 })).toMatchObject({ bandwidth: 5e6 });
  });
});
