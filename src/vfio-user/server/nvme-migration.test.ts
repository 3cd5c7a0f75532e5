import { closeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type DrivenDevice, MEMORY_BYTES } from "../../devices/guest.test.helper.js";
import { DiskFile, Guest } from "../../devices/nvme/driver.test.helper.js";
import { IO, NSID } from "../../devices/nvme/spec.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { createMemfd } from "../../sys/memfd.js";
import { mapFileOver } from "../../sys/mmap.js";
import { moveServed, ServedDriven } from "./driven.test.helper.js";
import { socketDirectory } from "./served.test.helper.js";

/*
 * An NVMe controller that moves from one server to the next, on the same file, while its guest has commands in its queues.
 */

const QUEUES = 3;
const ENTRIES = 32;
const SLOTS = 256;
const MOVES = 6;
const COMMANDS_PER_MOVE = 120;

/** A server for each move, on a computer that may be busy. */
const LONG = { timeout: 120_000 };

describe.runIf(process.platform === "linux")("a served NVMe controller that moves in the middle of queued I/O", () => {
  it("completes each command once", LONG, async () => {
    using directory = socketDirectory();
    using disk = new DiskFile({ bytes: SLOTS * PAGE_SIZE });
    const fd = createMemfd("guest", MEMORY_BYTES);
    try {
      let served: ServedDriven | undefined;
      const connected = (): ServedDriven => {
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
      const start = (name: string) => {
        const options = { file: disk.path, serial: "moving" };
        const incoming = name !== "0";
        const path = join(directory.path, name);
        return ServedDriven.start({ model: "nvme", options, path, incoming }, { fd, regions });
      };
      served = await start("0");
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
        const target = await start(String(round + 1));
        moveServed(served, target, ring);
        const { reads, writes } = served.counters();
        if (reads + writes < queued) busyMoves++;
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
