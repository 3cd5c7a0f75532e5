import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { enableBusMaster } from "../../../devices/workload.js";
import { DEFAULT_POLICY } from "../../../tracking/choice.js";
import { VfioUserHost } from "../../../vfio-user/client/host.js";
import { type DeviceServer, serveDevice } from "../../../vfio-user/server/server.js";
import { serversText } from "../../text/plan-text.js";
import { planServers, probeServers } from "./probe.js";

let folder: string;
const servers: DeviceServer[] = [];
const path = (name: string) => join(folder, name);

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "dirtmap-probe-"));
  for (const model of ["mlx5", "nic"]) {
    servers.push(await serveDevice({ model, path: path(model), options: { rate: 0 } }));
  }
});
afterAll(async () => {
  for (const server of servers) await server.close();
  rmSync(folder, { recursive: true, force: true });
});

describe("dirtmap probe --host vfio-user:…", () => {
  it("tells of each served device which trackers it has, and its state now", async () => {
    await using host = new VfioUserHost([{ path: path("mlx5") }, { path: path("nic") }]);
    const [mlx5, nic] = await probeServers(host);
    expect(mlx5).toMatchObject({
      id: "mlx5",
      model: "mlx5",
      migration: { stopCopy: true, p2p: true, preCopy: true },
      flags: { tracksInternally: true },
      trackers: { device: { available: true, pageSizes: [4096, 65536, 2 ** 21] }, iommu: { available: false } },
      server: { state: "RUNNING", log: null },
    });
    expect(nic).toMatchObject({ id: "nic", trackers: { device: { available: false } } });
    const text = serversText([mlx5, nic]);
    expect(text).toContain("mlx5: mlx5, in another process");
    expect(text).toMatch(/now: state RUNNING, log off/);
  });

  it("leaves a device that is in use as it is, and tells of its log", async () => {
    await using user = new VfioUserHost([{ path: path("mlx5"), id: "vf0" }]);
    const device = await user.openDevice("vf0");
    await enableBusMaster(device);
    await device.startDmaLogging({ pageSize: 4096, ranges: [{ iova: 0n, length: 4096n }] });
    await device.setState("STOP");
    await using host = new VfioUserHost([{ path: path("mlx5") }]);
    const probed = await probeServers(host);
    expect(probed).toMatchObject([{ server: { state: "STOP", log: { granule: 4096 } } }]);
    expect(serversText(probed)).toMatch(/now: state STOP, log on, by 4096 bytes, for client \d+/);
    expect(await device.state()).toBe("STOP");
    expect(await device.serverCounters()).toMatchObject({ busMaster: true });
  });

  it("may be given the control socket itself", async () => {
    await using host = new VfioUserHost([{ path: `${path("mlx5")}.control` }]);
    expect(await probeServers(host)).toMatchObject([{ id: "mlx5", model: "mlx5", server: { log: null } }]);
  });

  it("fails where nobody serves, with what to start", async () => {
    await using host = new VfioUserHost([{ path: path("nobody") }]);
    await expect(probeServers(host)).rejects.toMatchObject({
      code: "ENOENT",
      remedy: expect.stringContaining("dirtmap device"),
    });
  });
});

describe("dirtmap plan --host vfio-user:…", () => {
  it("chooses a tracker for each served device, with its reason", async () => {
    await using host = new VfioUserHost([{ path: path("mlx5") }, { path: path("nic") }]);
    const policy = { ...DEFAULT_POLICY, untrackedDevices: { nic: "everything" as const } };
    const [mlx5, nic] = await planServers(host, policy);
    expect(mlx5).toMatchObject({ device: "mlx5", tracker: "device", granule: 4096 });
    expect(mlx5.reason).not.toBe("");
    expect(nic).toMatchObject({ device: "nic", tracker: "everything" });
    expect(nic.alternatives.map(({ tracker }) => tracker)).toContain("device");
  });

  it("refuses a policy for a device that is not served", async () => {
    await using host = new VfioUserHost([{ path: path("mlx5") }]);
    const policy = { ...DEFAULT_POLICY, trackers: { vf0: "device" as const } };
    await expect(planServers(host, policy)).rejects.toMatchObject({
      code: "UNKNOWN_DEVICE",
      remedy: "there are: mlx5",
    });
  });
});
