import { UsageError } from "../../errors.js";
import { measuredChoices } from "../../evidence/recommend/recommendation.js";
import type { Recommendation } from "../../evidence/recommend/result.js";
import { scenarioNames } from "../../scenario/scenario.js";
import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import { DEFAULT_POLICY } from "../../tracking/choice.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { probeMachine } from "../../tracking/probe.js";
import { readScenario } from "../input/scenario.js";
import { benchCommand } from "../text/commands-to-type.js";
import { openLinuxHost, openMachine } from "./hosts.js";
import { probeHost } from "./linux/probe.js";

/**
 * Whether the machine still is what was measured: asks the devices that it has now. A machine that can't be found from here
 * (another scenario's file, devices behind sockets) is not asked.
 * @param from how messages name the benchmark
 * @returns devices that the machine has, and that were not measured
 * @throws UsageError `DEVICE_GONE`, `MODEL_CHANGED`, `TRACKER_GONE`
 */
export async function checkMachine(
  recommendation: Recommendation,
  { from, signal }: { from: string; signal: AbortSignal },
): Promise<string[]> {
  const { host, scenario, devices } = recommendation;
  if (host === "linux") {
    await checkLinux(recommendation, { from, signal });
    return [];
  }
  if (host !== "emulated" || scenario === null || !scenarioNames().includes(scenario)) return [];
  await using machine = await openMachine(readScenario({ scenario }).description, { paused: true });
  const probed = await probeMachine(machine);
  checkThere(
    recommendation,
    probed.map(({ id }) => id),
    `scenario ${scenario}`,
  );
  checkChoices(recommendation, probed, from);
  return probed.flatMap(({ id }) => (devices.some((device) => device.id === id) ? [] : [id]));
}

/** A device that can't be asked now, since a guest has it, is judged by what sysfs tells. */
async function checkLinux(
  recommendation: Recommendation,
  { from, signal }: { from: string; signal: AbortSignal },
): Promise<void> {
  await using host = await openLinuxHost();
  const there = await host.devices();
  checkThere(
    recommendation,
    there.map(({ id }) => id),
    "this machine",
  );
  const ids = recommendation.devices.map(({ id }) => id);
  const { devices } = await probeHost(host, { ids, signal });
  checkChoices(
    recommendation,
    devices.flatMap(({ capabilities }) => capabilities ?? []),
    from,
  );
}

function checkThere({ devices, host, scenario }: Recommendation, there: readonly string[], where: string): void {
  const gone = devices.find(({ id }) => !there.includes(id));
  if (gone === undefined) return;
  throw new UsageError(`${where} no longer has '${gone.id}', which was measured`, {
    code: "DEVICE_GONE",
    remedy: `measure again (${benchCommand({ host, scenario })}), or recommend without looking at the machine (--no-check)`,
  });
}

/** The policy's own checks. */
function checkChoices({ devices }: Recommendation, probed: readonly DeviceCapabilities[], from: string): void {
  const measured = measuredChoices(devices, { from });
  const known = probed.filter(({ id }) => devices.some((device) => device.id === id));
  chooseTrackers(known, { ...DEFAULT_POLICY, measured });
}
