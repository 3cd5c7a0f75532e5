import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { proxyDevice } from "../vfio-user/proxy/proxy.js";
import type { DmaMode } from "../vfio-user/server/client-memory.js";
import { type DeviceServer, serveDevice } from "../vfio-user/server/server.js";
import type { GuestDevice } from "./guest.js";
import { closeDevices, openDevices } from "./guest-devices.js";
import { trackerFor } from "./guest-tracking.js";

/*
 * Devices of a guest that another program serves, behind a proxy: how each is tracked, or why the guest is not moved.
 */

let folder: string;
let running: DeviceServer[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "dirtmap-guest-devices-"));
  running = [];
});
afterEach(async () => {
  for (const server of running.reverse()) await server.close();
  rmSync(folder, { recursive: true, force: true });
});

/** A device that is served, and a proxy before it; returns its place in a guest. */
async function behindProxy(model: string, dma: DmaMode, incoming = false): Promise<GuestDevice> {
  const served = join(folder, `${model}-served`);
  running.push(await serveDevice({ model, path: served, options: { rate: 0 } }));
  const socket = join(folder, model);
  running.push(await proxyDevice({ server: served, path: socket, dma, incoming }));
  return { name: model, path: "/machine/peripheral/it", bus: "/machine/q35/pcie.0", devfn: 0x20, bridges: [], socket };
}

describe.runIf(process.platform === "linux")("a guest's device behind a proxy", () => {
  it.each([
    { model: "mlx5", dma: "auto", tracker: "device" },
    { model: "mlx5", dma: "messages", tracker: "messages" },
    { model: "nic", dma: "messages", tracker: "messages" },
  ] as const)("is tracked by $tracker: $model, --dma $dma", async ({ model, dma, tracker }) => {
    const [device] = await openDevices([await behindProxy(model, dma)], { side: "source" });
    expect(trackerFor(device)).toBe(tracker);
    expect(trackerFor(device, { [model]: "device" })).toBe("device");
    await closeDevices([device]);
  });

  it("is refused where its server has no log, and has the memory's descriptors", async () => {
    const place = await behindProxy("nic", "auto");
    await expect(openDevices([place], { side: "source" })).rejects.toMatchObject({
      code: "CANNOT_TRACK",
      remedy: expect.stringContaining("--dma messages"),
    });
  });

  it("takes a state at the destination, if its proxy was started for that", async () => {
    const place = await behindProxy("nic", "auto");
    await expect(openDevices([place], { side: "destination" })).rejects.toMatchObject({ code: "NOT_INCOMING" });
    await closeDevices(await openDevices([await behindProxy("mlx5", "auto", true)], { side: "destination" }));
  });
});
