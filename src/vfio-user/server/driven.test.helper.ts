import type { DrivenDevice, TestGuest } from "../../devices/guest.test.helper.js";
import { PAGE_SIZE } from "../../memory/address.js";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_SET as SET,
  VFIO_DEVICE_STATE as STATE,
  vfio_device_feature_mig_state,
} from "../../uapi/vfio.js";
import { DIRTMAP_COMMAND, dirtmap_counters } from "../../uapi/vfio-user.js";
import { RawClient } from "../raw-client.test.helper.js";
import { feature, mapDma, moveData } from "./served.test.helper.js";
import { type DeviceServer, type ServeDeviceOptions, serveDevice } from "./server.js";

/** For tests: a device behind a socket, as a guest's driver sees it. */
export class ServedDriven implements DrivenDevice, AsyncDisposable {
  readonly client: RawClient;
  readonly server: DeviceServer;

  private constructor(server: DeviceServer) {
    this.server = server;
    this.client = RawClient.open(server.path);
  }

  /** A server to which the guest's memory is given: the file `fd`. */
  static async start(
    serve: ServeDeviceOptions,
    guest: { fd: number; regions: TestGuest<DrivenDevice>["memory"]["regions"] },
  ): Promise<ServedDriven> {
    const served = new ServedDriven(await serveDevice(serve));
    for (const { firstPage, pages, arenaPage, writeable } of guest.regions) {
      if (!writeable) continue;
      const [address, size, offset] = [firstPage, pages, arenaPage].map((count) => BigInt(count * PAGE_SIZE));
      mapDma(served.client, { address, size, offset }, [guest.fd]);
    }
    return served;
  }

  regionRead(region: number, offset: number, target: Uint8Array): void {
    target.set(this.client.regionRead(region, offset, target.byteLength));
  }

  regionWrite(region: number, offset: number, source: Uint8Array): void {
    this.client.regionWrite(region, offset, source);
  }

  /** It runs on a thread of its own. */
  run(): number {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    return 0;
  }

  /** What the device has counted, here and on those that it came from. */
  counters(): Record<string, number> {
    const { payload } = this.client.call(DIRTMAP_COMMAND.COUNTERS, dirtmap_counters, { argsz: 65536 });
    const json = new TextDecoder().decode(payload.subarray(dirtmap_counters.size)).replace(/\0$/, "");
    return (JSON.parse(json) as { device: Record<string, number> }).device;
  }

  setState(state: keyof typeof STATE): void {
    feature(
      this.client,
      SET | FEATURE.MIG_DEVICE_STATE,
      vfio_device_feature_mig_state.encode({ device_state: STATE[state] }),
    );
  }

  /** The server first: a device whose client leaves in the middle of a move would run again, and take its disk's file. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close();
    this.client[Symbol.dispose]();
  }
}

/** Moves a device's state; the target runs. @param quiesced what the guest does while the source does no DMA any more, but is not stopped */
export function moveServed(source: ServedDriven, target: ServedDriven, quiesced: () => void = () => {}): void {
  target.setState("RESUMING");
  for (const state of ["PRE_COPY", "PRE_COPY_P2P"] as const) source.setState(state);
  quiesced();
  source.setState("STOP_COPY");
  moveData(source.client, target.client);
  target.setState("STOP");
  target.setState("RUNNING_P2P");
  target.setState("RUNNING");
}
