import type { Command } from "commander";
import { safeStrings } from "../../safe-text.js";
import { EXIT_CODES } from "../exit-codes.js";
import {
  addHostOptions,
  addMachineOptions,
  checkHostOptions,
  type HostOptions,
  type MachineOptions,
  servedSockets,
} from "../input/options.js";
import { printResult, runCommand } from "../output.js";

interface ProbeOptions extends HostOptions, MachineOptions {
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap probe
  dirtmap probe --scenario case-c
  dirtmap probe --scenario ./my.yaml --json
  dirtmap probe --host linux
  dirtmap probe --host linux --device 3b:00.1 --json
  dirtmap probe --host vfio-user:/run/user/1000/mlx5,/run/user/1000/nic

With --host linux: what is or could be assigned on this machine, and what is missing for it. Devices that are on a VFIO
driver and in nobody's use are opened, asked, and closed again, which resets them. Nothing else is touched.

With --host vfio-user:PATH: devices that \`dirtmap device\` or another server serves at these sockets. Dirtmap's own are asked
over their control sockets, whoever uses them, and stay as they are; another server's device is opened, which resets it.
`;

/** `dirtmap probe`: what each device can do. */
export function addProbe(program: Command): void {
  const command = program
    .command("probe")
    .description("Lists each device with every tracker that it has or lacks, and its capability flags");
  addHostOptions(addMachineOptions(command), "all", { served: true })
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES)
    .action((options: ProbeOptions) =>
      runCommand({ json: options.json === true }, async (signal) => {
        checkHostOptions(command, options.host);
        const sockets = servedSockets(options.host);
        if (sockets !== null) await probeServed(sockets, options);
        else if (options.host === "linux") await probeLinux(options, signal);
        else await probeScenario(options);
        return EXIT_CODES.done.code;
      }),
    );
}

async function probeScenario({ json = false, ...options }: ProbeOptions): Promise<void> {
  const { checkMemory, readRequest } = await import("../input/settings.js");
  const { scenario, description } = readRequest(options);
  checkMemory(description, 1);
  const [{ openMachine }, { probeMachine }, { probeText }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../../tracking/probe.js"),
    import("../text/plan-text.js"),
  ]);
  await using machine = await openMachine(description, { paused: true });
  const devices = await probeMachine(machine);
  const { name: host } = machine.host;
  printResult({ scenario, host, devices }, { json, text: (safe) => probeText(safe.devices) });
}

async function probeServed(sockets: readonly string[], { json = false }: ProbeOptions): Promise<void> {
  const [{ openVfioUserHost }, { probeServers, serversText }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../sites/vfio-user/probe.js"),
  ]);
  await using host = await openVfioUserHost(sockets);
  const devices = await probeServers(host);
  printResult({ host: host.name, devices }, { json, text: (safe) => serversText(safe.devices) });
}

async function probeLinux({ json = false, device }: ProbeOptions, signal: AbortSignal): Promise<void> {
  const [{ openLinuxHost }, { probeHost }, { hostText }, { deviceNames }] = await Promise.all([
    import("../sites/hosts.js"),
    import("../sites/linux/probe.js"),
    import("../text/linux-probe-text.js"),
    import("../sites/linux/device-names.js"),
  ]);
  await using host = await openLinuxHost();
  const ids = device?.map((await deviceNames(host)).id);
  const { state, devices, mdevTypes } = await probeHost(host, { ids, signal });
  printResult(
    {
      host: host.name,
      ...state,
      devices: devices.map(({ device: facts, ...found }) => ({ ...facts, ...found })),
      mdevTypes,
    },
    { json, text: () => hostText(safeStrings({ state, devices, mdevTypes })) },
  );
}
