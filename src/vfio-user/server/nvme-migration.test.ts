import { closeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type DrivenDevice, MEMORY_BYTES } from "../../devices/guest.test.helper.js";
import { DiskFile, Guest } from "../../devices/nvme/driver.test.helper.js";
import { IO, NSID } from "../../devices/nvme/spec.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { createMemfd } from "../../sys/memfd.js";
import { mapFileOver } from "../../sys/mmap.js";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_SET as SET,
  VFIO_DEVICE_STATE as STATE,
  vfio_device_feature_mig_state,
} from "../../uapi/vfio.js";
import { DIRTMAP_COMMAND, dirtmap_counters, vfio_user_mig_data } from "../../uapi/vfio-user.js";
import { RawClient } from "../raw-client.test.helper.js";
import { feature, mapDma, socketDirectory } from "./served.test.helper.js";
import { type DeviceServer, serveDevice } from "./server.js";

/*
 * An NVMe controller that moves from one server to the next, on the same file, while its guest has commands in its queues.
 */

const QUEUES = 3;
const ENTRIES = 32;
const SLOTS = 256;
const MOVES = 6;
const COMMANDS_PER_MOVE = 120;
const DATA_BYTES = 1 << 20;

/** A device behind a socket, as a driver sees it. */
class Served implements DrivenDevice, AsyncDisposable {
  readonly client: RawClient;
  readonly #server: DeviceServer;

  private constructor(server: DeviceServer) {
    this.#server = server;
    this.client = RawClient.open(server.path);
  }

  /** A server on the file, to which the memory is given. */
  static async start(path: string, file: string, guest: { fd: number; regions: Guest["memory"]["regions"] }) {
    const options = { file, serial: "moving", incoming: 1 };
    const served = new Served(await serveDevice({ model: "nvme", options, path }));
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

  /** Reads and writes that were done, here and by those before it. */
  executed(): number {
    const { payload } = this.client.call(DIRTMAP_COMMAND.COUNTERS, dirtmap_counters, { argsz: 65536 });
    const json = new TextDecoder().decode(payload.subarray(dirtmap_counters.size)).replace(/\0$/, "");
    const { device } = JSON.parse(json) as { device: { reads: number; writes: number } };
    return device.reads + device.writes;
  }

  setState(state: keyof typeof STATE): void {
    feature(
      this.client,
      SET | FEATURE.MIG_DEVICE_STATE,
      vfio_device_feature_mig_state.encode({ device_state: STATE[state] }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    await this.#server.close();
  }
}

/** @param ring what the guest does while the source does no DMA any more, but is not stopped */
function move(source: Served, target: Served, ring: () => void): void {
  target.setState("RESUMING");
  for (const state of ["PRE_COPY", "PRE_COPY_P2P"] as const) source.setState(state);
  ring();
  source.setState("STOP_COPY");
  for (;;) {
    const { payload } = source.client.call("MIG_DATA_READ", vfio_user_mig_data, {
      argsz: 8 + DATA_BYTES,
      size: DATA_BYTES,
    });
    const data = payload.subarray(vfio_user_mig_data.size);
    if (data.byteLength === 0) break;
    const size = data.byteLength;
    target.client.call("MIG_DATA_WRITE", vfio_user_mig_data, { argsz: 8 + size, size }, { data });
  }
  target.setState("STOP");
  target.setState("RUNNING_P2P");
  target.setState("RUNNING");
}

describe.runIf(process.platform === "linux")("a served NVMe controller that moves in the middle of queued I/O", () => {
  it("completes each command once", async () => {
    using directory = socketDirectory();
    using disk = new DiskFile({ bytes: SLOTS * PAGE_SIZE });
    const fd = createMemfd("guest", MEMORY_BYTES);
    try {
      let served: Served | undefined;
      const connected = (): Served => {
        if (served === undefined) throw new Error("no device");
        return served;
      };
      const guest = new Guest<DrivenDevice>({
        regionRead: (...args) => connected().regionRead(...args),
        regionWrite: (...args) => connected().regionWrite(...args),
        run: () => connected().run(),
      });
      mapFileOver(guest.memory.arenas[0].u8.subarray(0, MEMORY_BYTES), fd);
      const { regions } = guest.memory;
      served = await Served.start(join(directory.path, "0"), disk.path, { fd, regions });
      guest.enable();
      for (let id = 1; id <= QUEUES; id++) guest.createQueues(id, ENTRIES);
      const pages = Array.from({ length: SLOTS }, () => guest.allocate(PAGE_SIZE));

      const open = new Map<string, { slot: number; fill: number | null }>();
      const contents = new Array<number>(SLOTS).fill(0);
      let queued = 0;
      let completed = 0;
      const take = () => {
        for (let id = 1; id <= QUEUES; id++) {
          for (const { queue, cid, status } of guest.take(id)) {
            const command = open.get(`${queue}:${cid}`);
            if (command === undefined) throw new Error(`command ${cid} of queue ${queue} was completed twice`);
            open.delete(`${queue}:${cid}`);
            completed++;
            expect(status).toBe(0);
            if (command.fill !== null) contents[command.slot] = command.fill;
            else
              expect(guest.at(pages[command.slot], PAGE_SIZE).every((byte) => byte === contents[command.slot])).toBe(
                true,
              );
          }
        }
      };
      let busyMoves = 0;
      for (let round = 0; round <= MOVES; round++) {
        for (let n = 0; n < COMMANDS_PER_MOVE; n++) {
          const id = 1 + (n % QUEUES);
          const slot = (n * 37 + round * 11) % SLOTS;
          const inUse = [...open.values()].some((command) => command.slot === slot);
          if (inUse || !guest.hasRoom(id)) {
            take();
            continue;
          }
          const fill = n % 3 === 0 ? null : (n + round * 50) & 0xff;
          guest.at(pages[slot], PAGE_SIZE).fill(fill ?? 0xee);
          const opcode = fill === null ? IO.READ : IO.WRITE;
          const cid = guest.queue(id, { opcode, nsid: NSID, prp1: pages[slot], dword10: slot * 8, dword12: 7 });
          open.set(`${id}:${cid}`, { slot, fill });
          queued++;
          if (n % 5 === 0) guest.ring(id);
        }
        const ring = () => {
          for (let id = 1; id <= QUEUES; id++) guest.ring(id);
        };
        if (round === MOVES) {
          ring();
          break;
        }
        const target = await Served.start(join(directory.path, String(round + 1)), disk.path, { fd, regions });
        move(served, target, ring);
        if (served.executed() < queued) busyMoves++;
        await served[Symbol.asyncDispose]();
        served = target;
      }
      for (let tries = 0; open.size > 0 && tries < 5000; tries++) {
        guest.device.run(1);
        take();
      }
      expect(open.size).toBe(0);
      expect(completed).toBe(queued);
      expect(queued).toBeGreaterThan(200);
      expect(busyMoves).toBeGreaterThan(MOVES / 2);
      await served[Symbol.asyncDispose]();
    } finally {
      closeSync(fd);
    }
  });
});
