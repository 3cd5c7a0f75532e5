import { safeStrings } from "../../safe-text.js";
import { probeMachine } from "../../tracking/probe.js";
import type { ProbeInput } from "../commands/probe.js";
import { servedSockets } from "../input/options/host.js";
import { readScenario } from "../input/scenario.js";
import { checkHostOptions } from "../input/which-go-together.js";
import { printResult } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { openLinuxHost, openMachine, openVfioUserHost } from "../sites/hosts.js";
import { deviceNames } from "../sites/linux/device-names.js";
import { probeHost } from "../sites/linux/probe.js";
import { probeServers } from "../sites/vfio-user/probe.js";
import { hostText } from "../text/linux-probe-text.js";
import { probeText, serversText } from "../text/plan-text.js";

export const run: Run<ProbeInput> = async (input, { signal, typed }) => {
  checkHostOptions(typed, input.host);
  const sockets = servedSockets(input.host);
  if (sockets !== null) await probeServed(sockets, input);
  else if (input.host === "linux") await probeLinux(input, signal);
  else await probeScenario(input);
};

async function probeScenario({ json = false, ...input }: ProbeInput): Promise<void> {
  const { scenario, description } = readScenario(input);
  checkMemory(description, 1);
  await using machine = await openMachine(description, { paused: true });
  const devices = await probeMachine(machine);
  const { name: host } = machine.host;
  printResult({ scenario, host, devices }, { json, text: (safe) => probeText(safe.devices) });
}

async function probeServed(sockets: readonly string[], { json = false }: ProbeInput): Promise<void> {
  await using host = await openVfioUserHost(sockets);
  const devices = await probeServers(host);
  printResult({ host: host.name, devices }, { json, text: (safe) => serversText(safe.devices) });
}

async function probeLinux({ json = false, device }: ProbeInput, signal: AbortSignal): Promise<void> {
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
