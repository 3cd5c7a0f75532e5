import type { Command } from "commander";
import { safeStrings } from "../../safe-text.js";
import type { Policy } from "../../tracking/choice.js";
import { EXIT_CODES } from "../exit-codes.js";
import { VMMS } from "../input/choices.js";
import {
  addHostOptions,
  addMachineOptions,
  addPolicyOptions,
  checkHostOptions,
  choice,
  type HostOptions,
  type LinkOptions,
  type MachineOptions,
  type PolicyOptions,
  servedSockets,
} from "../input/options.js";
import { printResult, printText, runCommand, warn } from "../output.js";

interface PlanOptions extends HostOptions, MachineOptions, PolicyOptions, LinkOptions {
  readonly only?: (typeof VMMS)[number];
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap plan
  dirtmap plan --policy device-first
  dirtmap plan --policy measured:recommendation.json
  dirtmap plan --scenario nic-pair --tracker vf0=iommu --granule vf0=4K
  dirtmap plan --scenario case-c --untracked nic0=everything --json
  dirtmap plan --host linux
  dirtmap plan --host linux --device 3b:00.1 3b:00.2 --tracker 3b:00.1=device
  dirtmap plan --host linux --only qemu | grep -v '^#'
  dirtmap plan --host vfio-user:/run/user/1000/mlx5,/run/user/1000/nic --untracked everything

With --host linux: for devices of this machine that one guest is to get, and the options of QEMU and the domain XML of
libvirt that make them do the same. A device that can't be asked yet is planned by what sysfs tells, and marked.

With --host vfio-user:PATH: for devices that are served at these sockets, which are asked as \`dirtmap probe\` does.
`;

/** `dirtmap plan`: which tracker each device would get, and why. */
export function addPlan(program: Command): void {
  const command = program
    .command("plan")
    .description(
      "Shows the tracker, granule and domain that each device would get, with the reason and the alternatives",
    );
  addHostOptions(addPolicyOptions(addMachineOptions(command)), "all on a VFIO driver", { served: true })
    .addOption(choice("--only <vmm>", VMMS, "VMM", "print only what makes a VMM do the same").conflicts("json"))
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES)
    .action((options: PlanOptions) =>
      runCommand({ json: options.json === true }, async (signal) => {
        checkHostOptions(command, options.host);
        const sockets = servedSockets(options.host);
        if (sockets !== null) await planServed(sockets, options);
        else if (options.host === "linux") await planLinux(options, signal);
        else await planScenario(options);
        return EXIT_CODES.done.code;
      }),
    );
}

async function planScenario({ json = false, ...options }: PlanOptions): Promise<void> {
  const { checkMemory, readRequest } = await import("../input/settings.js");
  const { scenario, description, policy, design } = readRequest(options);
  checkMemory(description, 1);
  const [{ openMachine }, { choicesUnder }, { probeMachine }, { chooseTrackers }, { planText }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../../tracking/designs.js"),
    import("../../tracking/probe.js"),
    import("../../tracking/policy.js"),
    import("../text/plan-text.js"),
  ]);
  await using machine = await openMachine(description, { paused: true });
  const devices = choicesUnder(design, chooseTrackers(await probeMachine(machine), policy), machine);
  printResult({ scenario, design, policy, devices }, { json, text: (safe) => planText(safe.devices, safe.policy) });
}

async function planServed(sockets: readonly string[], { json = false, ...options }: PlanOptions): Promise<void> {
  const [{ openVfioUserHost }, { planServers }, { planText }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../sites/vfio-user/probe.js"),
    import("../text/plan-text.js"),
  ]);
  const policy = await policyOf(options, (named = {}) => ({ ...named }));
  await using host = await openVfioUserHost(sockets);
  const devices = await planServers(host, policy);
  printResult({ host: host.name, policy, devices }, { json, text: (safe) => planText(safe.devices, safe.policy) });
}

/** @param byId turns what the operator named into ids of the host */
async function policyOf(
  options: PlanOptions,
  byId: <T>(named: Readonly<Record<string, T>> | undefined) => Record<string, T>,
): Promise<Policy> {
  const [{ whoDecides }, { DEFAULT_POLICY }] = await Promise.all([
    import("../input/policy.js"),
    import("../../tracking/choice.js"),
  ]);
  return {
    ...whoDecides(options),
    trackers: byId(options.tracker),
    granules: byId(options.granule),
    domain: options.domain ?? DEFAULT_POLICY.domain,
    untracked: options.untracked?.all ?? DEFAULT_POLICY.untracked,
    untrackedDevices: byId(options.untracked?.devices),
  };
}

async function planLinux({ json = false, ...options }: PlanOptions, signal: AbortSignal): Promise<void> {
  const [{ openLinuxHost }, { hostPlanText, hostPlanWarnings, planHost }, { deviceNames }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../sites/linux/plan.js"),
    import("../sites/linux/device-names.js"),
  ]);
  const [{ libvirtText }, { qemuText }] = await Promise.all([
    import("../../vmm-options/libvirt-xml.js"),
    import("../../vmm-options/qemu-command-line.js"),
  ]);
  await using host = await openLinuxHost();
  const { id, byId } = await deviceNames(host);
  const policy = await policyOf(options, byId);
  const plan = await planHost(host, policy, { ids: options.device?.map(id), signal });
  const { libvirt, ...rest } = plan;
  const xml = { xml: libvirtText(libvirt), notes: libvirt.notes, oldest: libvirt.oldest };
  if (options.only !== undefined) {
    for (const warning of hostPlanWarnings(plan)) warn(warning);
    if (plan.qemu.arguments.length > 0) {
      printText(options.only === "qemu" ? qemuText(plan.qemu) : xml.xml);
    }
    return;
  }
  const text = () => hostPlanText(safeStrings(plan), safeStrings(policy));
  printResult({ host: host.name, policy, ...rest, libvirt: xml }, { json, text });
}
