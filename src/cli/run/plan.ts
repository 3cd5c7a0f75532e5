import { safeStrings } from "../../safe-text.js";
import { choicesUnder } from "../../tracking/designs.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { probeMachine } from "../../tracking/probe.js";
import { libvirtText } from "../../vmm-options/libvirt-xml.js";
import { qemuText } from "../../vmm-options/qemu-command-line.js";
import type { PlanInput } from "../commands/plan.js";
import { servedSockets } from "../input/options/host.js";
import { policyOf } from "../input/policy.js";
import { readScenario } from "../input/scenario.js";
import { checkHostOptions } from "../input/which-go-together.js";
import { printResult, printText, warn } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { openLinuxHost, openMachine, openVfioUserHost } from "../sites/hosts.js";
import { deviceNames } from "../sites/linux/device-names.js";
import { planHost } from "../sites/linux/plan.js";
import { planServers } from "../sites/vfio-user/probe.js";
import { hostPlanText, hostPlanWarnings } from "../text/linux-plan-text.js";
import { planText } from "../text/plan-text.js";

export const run: Run<PlanInput> = async (input, { signal, typed }) => {
  checkHostOptions(typed, input.host);
  const sockets = servedSockets(input.host);
  if (sockets !== null) await planServed(sockets, input);
  else if (input.host === "linux") await planLinux(input, signal);
  else await planScenario(input);
};

async function planScenario({ json = false, ...input }: PlanInput): Promise<void> {
  const { scenario, description, policy, design } = readScenario(input);
  checkMemory(description, 1);
  await using machine = await openMachine(description, { paused: true });
  const devices = choicesUnder(design, chooseTrackers(await probeMachine(machine), policy), machine);
  printResult({ scenario, design, policy, devices }, { json, text: (safe) => planText(safe.devices, safe.policy) });
}

async function planServed(sockets: readonly string[], { json = false, ...input }: PlanInput): Promise<void> {
  const policy = policyOf(input);
  await using host = await openVfioUserHost(sockets);
  const devices = await planServers(host, policy);
  printResult({ host: host.name, policy, devices }, { json, text: (safe) => planText(safe.devices, safe.policy) });
}

async function planLinux({ json = false, ...input }: PlanInput, signal: AbortSignal): Promise<void> {
  await using host = await openLinuxHost();
  const { id, byId } = await deviceNames(host);
  const policy = policyOf(input, {}, byId);
  const plan = await planHost(host, policy, { ids: input.device?.map(id), signal });
  const { libvirt, ...rest } = plan;
  const xml = { xml: libvirtText(libvirt), notes: libvirt.notes, oldest: libvirt.oldest };
  if (input.only !== undefined) {
    for (const warning of hostPlanWarnings(plan)) warn(warning);
    if (plan.qemu.arguments.length > 0) printText(input.only === "qemu" ? qemuText(plan.qemu) : xml.xml);
    return;
  }
  const text = () => hostPlanText(safeStrings(plan), safeStrings(policy));
  printResult({ host: host.name, policy, ...rest, libvirt: xml }, { json, text });
}
