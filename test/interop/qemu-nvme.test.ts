import { createHash } from "node:crypto";
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_GET as GET,
  VFIO_DEVICE_FEATURE_SET as SET,
  vfio_device_feature,
  vfio_device_feature_dma_logging_range,
} from "../../src/uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  dirtmap_counters,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
} from "../../src/uapi/vfio-user.js";
import { RawClient } from "../../src/vfio-user/raw-client.test.helper.js";
import { MissingError } from "../../tools/vm/missing.js";
import { requireFound } from "../support/required.js";
import { DeviceProgram } from "./device-program.js";
import { findShellImage, GUEST_MEMORY_BYTES, makeShellInitramfs, ShellGuest, type ShellImage } from "./guest-shell.js";

/*
 * An NVMe controller served to QEMU, driven by Linux's own nvme driver, while a second connection tracks its DMA.
 */

const root = fileURLToPath(new URL("../../../", import.meta.url));

const DISK_BYTES = 64 * 2 ** 20;
const PAGE = 4096;
const TEST_LIMIT_MS = 300_000;

/** Pages of completion queues that two vCPUs' driver has: for each 1024 entries of 16 bytes, and one for administration. */
const COMPLETION_PAGES = 2 * 4 + 1;

/** The control connection of a served device. */
class Control implements Disposable {
  readonly #client: RawClient;

  constructor(socket: string) {
    this.#client = RawClient.open(`${socket}.control`);
  }

  /** Logs DMA to the guest's memory, by pages. */
  startLog(): void {
    const { size: head } = vfio_user_dma_logging_control;
    const data = new Uint8Array(head + vfio_device_feature_dma_logging_range.size);
    vfio_user_dma_logging_control.encode({ page_size: BigInt(PAGE), num_ranges: 1 }, data);
    vfio_device_feature_dma_logging_range.encode({ iova: 0n, length: BigInt(GUEST_MEMORY_BYTES) }, data, head);
    this.#feature(SET | FEATURE.DMA_LOGGING_START, data);
  }

  /** Reads and clears the log: the frames that were written. */
  readLog(): Set<number> {
    const { size: head } = vfio_user_dma_logging_report;
    const pages = GUEST_MEMORY_BYTES / PAGE;
    const request = { iova: 0n, length: BigInt(GUEST_MEMORY_BYTES), page_size: BigInt(PAGE) };
    const reply = this.#feature(
      GET | FEATURE.DMA_LOGGING_REPORT,
      vfio_user_dma_logging_report.encode(request),
      pages / 8,
    );
    const bitmap = reply.subarray(head);
    const frames = new Set<number>();
    for (let frame = 0; frame < pages; frame++) if ((bitmap[frame >> 3] >> (frame & 7)) & 1) frames.add(frame);
    return frames;
  }

  stopLog(): void {
    this.#feature(SET | FEATURE.DMA_LOGGING_STOP, new Uint8Array(0));
  }

  counters(): { device: Record<string, number>; dma: Record<string, number> } {
    const { payload } = this.#client.call(DIRTMAP_COMMAND.COUNTERS, dirtmap_counters, { argsz: 65536 });
    return JSON.parse(new TextDecoder().decode(payload.subarray(dirtmap_counters.size)).replace(/\0$/, ""));
  }

  [Symbol.dispose](): void {
    this.#client[Symbol.dispose]();
  }

  #feature(flags: number, data: Uint8Array, answer = 0): Uint8Array {
    const argsz = vfio_device_feature.size + data.byteLength + answer;
    const { payload } = this.#client.call("DEVICE_FEATURE", vfio_device_feature, { argsz, flags }, { data });
    return payload.subarray(vfio_device_feature.size);
  }
}

function vfioUser(socket: string, id: string, bus?: string): object {
  return { driver: "vfio-user-pci", id, ...(bus === undefined ? {} : { bus }), socket: { type: "unix", path: socket } };
}

const found = findShellImage(root);
requireFound("QEMU 10.1 or later as a client of vfio-user", found);

/** `dirtmap device nvme`. */
function serve(socket: string, file: string, options: readonly string[] = []): Promise<DeviceProgram> {
  return DeviceProgram.start("nvme", socket, ["--option", `file=${file}`, ...options]);
}

describe.skipIf(found instanceof MissingError)("an NVMe controller that QEMU's guest drives", () => {
  let folder = "";
  let image: ShellImage;
  let server: DeviceProgram;
  let guest: ShellGuest;
  const socket = () => join(folder, "nvme");
  const file = () => join(folder, "disk.img");
  const rootPorts = ["-device", "pcie-root-port,id=port1,chassis=1"];

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    folder = mkdtempSync(join(tmpdir(), "dirtmap-nvme-"));
    const fd = openSync(file(), "w");
    ftruncateSync(fd, DISK_BYTES);
    closeSync(fd);
    image = { ...found, initramfs: makeShellInitramfs(root, folder) };
    server = await serve(socket(), file(), ["--option", "serial=interop"]);
    const disk = ["-device", JSON.stringify(vfioUser(socket(), "disk"))];
    guest = await ShellGuest.boot(image, join(folder, "guest"), [...disk, ...rootPorts]);
  }, TEST_LIMIT_MS);

  afterAll(async () => {
    await guest?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
    if (folder !== "") rmSync(folder, { recursive: true, force: true });
  }, TEST_LIMIT_MS);

  it("is found by its driver, with its identity and all its queues", async () => {
    expect((await guest.run("cat /sys/block/nvme0n1/size")).trim()).toBe(String(DISK_BYTES / 512));
    expect((await guest.run("cat /sys/class/nvme/nvme0/serial")).trim()).toBe("interop");
    expect((await guest.run("cat /sys/class/nvme/nvme0/model")).trim()).toBe("Dirtmap NVMe");
    expect(guest.kernelLog).toContain("nvme nvme0: 2/0/0 default/read/poll queues");
    expect(await guest.run("grep nvme0q2 /proc/interrupts")).toContain("MSIX");
    expect(guest.kernelLog).not.toMatch(/nvme nvme0: .*(timeout|error|fail)/i);
  });

  it(
    "keeps what is written to it by several at once",
    async () => {
      await guest.run("for i in 0 1 2 3; do dd if=/dev/urandom of=/tmp/data$i bs=1M count=3 2>/dev/null & done; wait");
      const parts = "for i in 0 1 2 3; do";
      await guest.run(
        `${parts} dd if=/tmp/data$i of=/dev/nvme0n1 bs=$((4 << (i * 2)))k seek=$((i * 3072 / (4 << (i * 2)))) oflag=direct 2>/tmp/log$i & done; wait`,
      );
      const expected = await guest.run("cat /tmp/data0 /tmp/data1 /tmp/data2 /tmp/data3 | md5sum");
      const sums = await guest.run(
        "for n in 1 2 3; do dd if=/dev/nvme0n1 bs=$((n * 64))k iflag=direct 2>/dev/null | head -c 12582912 | md5sum & done; wait",
      );
      expect(sums.trim().split("\n")).toEqual([0, 0, 0].map(() => expected.trim()));
      await guest.run("sync");
      const written = readFileSync(file()).subarray(0, 12 * 2 ** 20);
      expect(expected).toContain(createHash("md5").update(written).digest("hex"));
    },
    TEST_LIMIT_MS,
  );

  it(
    "goes on after resets of the controller, with I/O under way",
    async () => {
      const expected = (await guest.run("dd if=/dev/nvme0n1 bs=1M count=12 iflag=direct 2>/dev/null | md5sum")).trim();
      const reset = "for i in 1 2 3; do echo 1 >/sys/class/nvme/nvme0/reset_controller; sleep 1; done";
      const reader = "dd if=/dev/nvme0n1 bs=16k count=768 iflag=direct 2>/dev/null | md5sum";
      const output = await guest.run(`( ${reader}; ${reader}; ${reader} ) & ${reset}; wait`);
      expect(output.trim().split("\n")).toEqual([expected, expected, expected]);
      expect(guest.kernelLog.match(/nvme nvme0: 2\/0\/0 default/g)?.length).toBeGreaterThanOrEqual(4);
    },
    TEST_LIMIT_MS,
  );

  it(
    "has every page that it reads the disk into in its log, and no other",
    async () => {
      using control = new Control(socket());
      control.startLog();
      const image = readFileSync(file());
      for (const seed of [1, 2, 3]) {
        control.readLog();
        // Writing to the disk is reading memory: it leaves no trace in the log.
        const load = "dd if=/tmp/data1 of=/dev/nvme0n1 bs=64k seek=400 oflag=direct 2>/dev/null";
        const output = await guest.run(`${load} & direct-reads /dev/nvme0n1 1000 ${seed}; wait`);
        const logged = control.readLog();
        const lines = output.trim().split("\n");
        expect(lines.pop()).toBe("done");
        const targets = new Set<number>();
        for (const line of lines) {
          const [frame, kind, sum, at, bytes] = line.split(" ");
          if (kind === "decoy") {
            expect(logged.has(Number(frame))).toBe(false);
            continue;
          }
          targets.add(Number(frame));
          const end = Number(at) + Number(bytes);
          // Not of what is being written meanwhile.
          if (end <= 400 * 65536) expect(fnv1a(image.subarray(Number(at), end))).toBe(Number(sum));
        }
        expect(targets.size).toBeGreaterThan(300);
        expect([...targets].filter((frame) => !logged.has(frame))).toEqual([]);
        const others = [...logged].filter((frame) => !targets.has(frame));
        expect(others.length).toBeLessThanOrEqual(COMPLETION_PAGES);
      }
      control.stopLog();
      const { device, dma } = control.counters();
      expect(device.reads).toBeGreaterThan(1000);
      expect(dma.faults).toBe(0);
    },
    TEST_LIMIT_MS,
  );

  it("can't be given to a second server while this one has its file", async () => {
    await expect(serve(join(folder, "second"), file())).rejects.toThrow(/locked/);
    expect(existsSync(join(folder, "second"))).toBe(false);
  });

  it(
    "is missed with an I/O error when its server is gone, and is back when another serves its file",
    async () => {
      const expected = (await guest.run("dd if=/dev/nvme0n1 bs=1M count=12 iflag=direct 2>/dev/null | md5sum")).trim();
      await server.end("SIGKILL");
      await expect(guest.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct 2>&1")).rejects.toThrow(
        /Input\/output error|No such device|can't open/,
      );
      expect(guest.isRunning).toBe(true);
      server = await serve(socket(), file(), ["--option", "serial=interop2"]);
      expect(server.output).toContain("left behind");
      await guest.monitor("device_add", vfioUser(socket(), "again", "port1"));
      await guest.run(
        "echo 1 >/sys/bus/pci/rescan; for i in $(seq 30); do grep -ls interop2 /sys/class/nvme/*/serial && break; sleep 1; done",
      );
      const name = (await guest.run("basename $(dirname $(grep -l interop2 /sys/class/nvme/*/serial))")).trim();
      await guest.run(`for i in $(seq 30); do [ -b /dev/${name}n1 ] && exit; sleep 1; done; exit 1`);
      const sum = await guest.run(`dd if=/dev/${name}n1 bs=1M count=12 iflag=direct 2>/dev/null | md5sum`);
      expect(sum.trim()).toBe(expected);
    },
    TEST_LIMIT_MS,
  );

  it(
    "works through messages as well, where QEMU writes the memory itself",
    async () => {
      await guest[Symbol.asyncDispose]();
      await server.end("SIGTERM");
      server = await serve(socket(), file(), ["--dma", "messages"]);
      const disk = ["-device", JSON.stringify(vfioUser(socket(), "disk"))];
      guest = await ShellGuest.boot(image, join(folder, "guest2"), disk);
      const sum = await guest.run("dd if=/dev/nvme0n1 bs=1M count=4 iflag=direct 2>/dev/null | md5sum");
      const data = Buffer.alloc(4 * 2 ** 20);
      const fd = openSync(file(), "r");
      readSync(fd, data);
      closeSync(fd);
      expect(sum).toContain(createHash("md5").update(data).digest("hex"));
      using control = new Control(socket());
      expect(control.counters().dma.bytesWritten).toBeGreaterThan(data.byteLength);
    },
    TEST_LIMIT_MS,
  );
});

function fnv1a(data: Uint8Array): number {
  let sum = 0x811c9dc5;
  for (const byte of data) sum = Math.imul(sum ^ byte, 0x01000193);
  return sum >>> 0;
}
