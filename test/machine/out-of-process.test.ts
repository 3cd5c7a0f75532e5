import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openMachine } from "../../src/cli/sites/hosts.js";
import type { OwnProcess } from "../../src/cli/sites/own-process.js";
import { startDeviceProcess } from "../../src/cli/sites/vfio-user/device-process.js";
import type { MachineDescription } from "../../src/host/description.js";
import { VfioUserHost } from "../../src/vfio-user/client/host.js";
import { reworded, says } from "../support/frame-proxy.js";
import { DISK, GPU, LOAD, machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, expectRunning, Rig } from "../support/migration.js";

/** Processes are started, on a computer that may be busy. */
const LONG = { timeout: 120_000 };

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "dirtmap-out-of-process-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A VF that is served at one socket, and at another where the machine goes. */
function served(name: string): MachineDescription {
  const socket = join(folder, name);
  return machineOf([{ id: "vf0", model: "mlx5", socket, destinationSocket: `${socket}-destination`, load: LOAD }]);
}

/** Has a control client stop the device that is served at a socket. */
/** Starts the process of its source's device, and of its destination's. */
async function startBoth({ devices: [vf], seed }: MachineDescription): Promise<OwnProcess<true>[]> {
  const sockets = [vf.socket ?? "", vf.destinationSocket ?? ""];
  return Promise.all(sockets.map((socket) => startDeviceProcess(vf, { socket, seed })));
}

async function end(processes: readonly OwnProcess<true>[]): Promise<void> {
  for (const process of processes) await process[Symbol.asyncDispose]();
}

/** Ends it without a word, as a crash does. */
function kill({ pid }: OwnProcess<true>): void {
  if (pid !== undefined) process.kill(pid, "SIGKILL");
}

describe("a machine whose devices all run in other processes", () => {
  it("is moved while they write, each with its tracker, and nothing is lost", LONG, async () => {
    const { iommu: _vf, ...vf } = VF;
    const { iommu: _nic, ...nic } = NIC;
    const { iommu: _disk, ...disk } = DISK;
    const description = machineOf([
      { ...vf, serve: true },
      { ...nic, serve: true, dma: "messages" },
      { ...disk, serve: true, dma: "messages" },
      { ...GPU, serve: true },
    ]);
    await using rig = await Rig.startServed(description);
    const moved = await rig.migrate();
    expectMoved(moved);
    const { devices, rounds } = moved.report;
    expect(Object.fromEntries(devices.map(({ id, tracker }) => [id, tracker]))).toEqual({
      vf0: "device",
      nic0: "iommu",
      disk0: "iommu",
      gpu0: "device",
    });
    for (const id of ["vf0", "nic0", "disk0", "gpu0"]) {
      expect(rounds.reduce((sum, { byDevice }) => sum + (byDevice[id]?.reported ?? 0), 0)).toBeGreaterThan(0);
    }
  });

  it("is moved with devices that nobody tracks, too: everything counts as dirty", LONG, async () => {
    const { iommu: _, ...nic } = NIC;
    await using rig = await Rig.startServed(machineOf([{ ...nic, serve: true }]));
    const moved = await rig.migrate();
    expectMoved(moved);
    expect(moved.report.devices[0].tracker).toBe("everything");
  });
});

describe("a machine with one device in this process and one in another", () => {
  it("is moved, from the one's server to another's", LONG, async () => {
    const { devices } = served("mixed");
    const description = machineOf([NIC, ...devices]);
    const processes = await startBoth({ ...description, devices });
    try {
      await using rig = await Rig.startServed(description);
      expectMoved(await rig.migrate());
    } finally {
      await end(processes);
    }
  });
});

describe("a device whose process ends during the migration", () => {
  it.each(["pre-copy", "stop-copy"] as const)(
    "at the destination before %s fails the migration, and the source runs on",
    LONG,
    async (at) => {
      const description = served(`killed-there-${at}`);
      const processes = await startBoth(description);
      try {
        await using rig = await Rig.startServed(description);
        const { report, received } = await rig.migrate({
          hooks: { beforePhase: (phase) => void (phase === at && kill(processes[1])) },
        });
        expect([report.result, received.outcome]).toEqual(["failed", "discarded"]);
        await expectRunning(rig.source);
      } finally {
        await end(processes);
      }
    },
  );

  it("at the source fails the migration, and names the device and what became of it", LONG, async () => {
    const description = served("killed-here");
    const processes = await startBoth(description);
    try {
      await using rig = await Rig.startServed(description);
      const { report, received } = await rig.migrate({
        hooks: { beforePhase: (phase) => void (phase === "pausing" && kill(processes[0])) },
      });
      expect([report.result, received.outcome]).toEqual(["failed", "discarded"]);
      expect(report.error?.message).toMatch(/vf0/);
      expect(report.error?.message).toMatch(/closed the connection/);
    } finally {
      await end(processes);
    }
  });
});

describe("a served device at the destination that refuses its state", () => {
  it("is named in the report, with its reason, while the source runs", LONG, async () => {
    await using rig = await Rig.startServed(machineOf([{ id: "vf0", model: "mlx5", load: LOAD, serve: true }]));
    const { report, received } = await rig.migrate({
      meddlers: {
        // As a server of another version would send it.
        toDestination: (frame) =>
          says(frame, "DEVICE_STATE") ? reworded(frame, /"stateVersion":1/, () => '"stateVersion":9') : frame,
      },
    });
    const reason = expect.stringMatching(/"stateVersion":9.*this device is a mlx5 with state version 1/);
    expect(report).toMatchObject({
      result: "failed",
      downtimeMs: null,
      error: { code: "BAD_DEVICE_STATE", device: { id: "vf0", side: "destination", reason } },
    });
    // Nothing that only the device's own user could do.
    expect(report.error?.remedy).not.toMatch(/reset/);
    expect(report.error?.message).not.toMatch(/reset/);
    expect(received.outcome).toBe("discarded");
    await expectRunning(rig.source);
  });
});

describe("a machine that names a socket", () => {
  it("is refused where another device is served there", LONG, async () => {
    const description = served("wrong");
    const [vf] = description.devices;
    const socket = vf.socket ?? "";
    const server = await startDeviceProcess({ ...vf, id: "another" }, { socket, seed: 1 });
    try {
      // A controlling client that leaves would have the device run again.
      await using host = new VfioUserHost([{ path: socket, id: "device" }]);
      const control = await host.openControl("device");
      await control.setState("STOP");
      await expect(openMachine(description)).rejects.toMatchObject({
        code: "WRONG_DEVICE",
        remedy: expect.stringContaining("--id vf0"),
      });
      // It is left as it was: not reset, as it would be to be used.
      expect(await control.state()).toBe("STOP");
    } finally {
      await end([server]);
    }
  });

  it("is refused where nobody serves, and at a destination whose socket is not said", async () => {
    const description = served("nobody");
    await expect(openMachine(description)).rejects.toMatchObject({ code: "ENOENT" });
    const { destinationSocket: _, ...vf } = description.devices[0];
    const unsaid = { ...description, devices: [vf] } as MachineDescription;
    await expect(openMachine(unsaid, { paused: true, side: "destination" })).rejects.toMatchObject({
      code: "NO_DESTINATION_SOCKET",
    });
  });
});
