import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { PAGE_SIZE } from "../../memory/address.js";
import { DiskFile, describeBuffer, Guest } from "./driver.test.helper.js";
import { MAX_IO_QUEUES, MAX_TRANSFER_BYTES } from "./limits.js";
import { Nvme, type NvmeOptions } from "./nvme.js";
import {
  ADMIN,
  CC,
  CNS,
  CSTS,
  DOORBELLS,
  FEATURE,
  FUA,
  IO,
  LOG,
  NSID,
  NSID_ALL,
  NSSR_RESET,
  REGISTER,
  STATUS,
} from "./spec.js";

const BLOCK = 512;
const DISK_BYTES = 2 * 2 ** 20;
const BLOCKS = DISK_BYTES / BLOCK;

/** A slice that ends only because there is nothing left to do. */
const UNTIL_IDLE_MS = 10_000;

const disposables: Disposable[] = [];
afterEach(() => {
  for (const disposable of disposables.splice(0).reverse()) disposable[Symbol.dispose]();
});

function makeDisk(bytes = DISK_BYTES): DiskFile {
  const disk = new DiskFile({ bytes });
  disposables.push(disk);
  return disk;
}

async function startGuest(
  options: Partial<NvmeOptions> = {},
  queues?: { ioQueues?: number; entries?: number },
): Promise<{ guest: Guest; disk: DiskFile }> {
  const disk = makeDisk();
  const guest = await Guest.start({ file: disk.path, ...options }, queues);
  disposables.push({ [Symbol.dispose]: () => guest.device[Symbol.dispose]() });
  return { guest, disk };
}

/** A device for the same guest that goes on where the other stopped. */
async function moveTo(guest: Guest, file: string, options: Partial<NvmeOptions> = {}): Promise<void> {
  const target = new Nvme({ file, blockBytes: BLOCK, incoming: true, ...options });
  await target.start(guest.context);
  const source = guest.device;
  source.quiesce();
  target.quiesce();
  target.load(source.save());
  source[Symbol.dispose]();
  guest.device = target;
}

const read = (block: number, blocks: number, prp: { prp1: number; prp2?: number }) => ({
  opcode: IO.READ,
  nsid: NSID,
  dword10: block,
  dword12: blocks - 1,
  ...prp,
});
const write = (block: number, blocks: number, prp: { prp1: number; prp2?: number }) => ({
  ...read(block, blocks, prp),
  opcode: IO.WRITE,
});

/** Pages in an order that no driver would have, so that following them wrongly shows. */
function scatteredPages(guest: Guest, count: number): number[] {
  const pages = Array.from({ length: count }, () => guest.allocate(PAGE_SIZE));
  return [...pages.filter((_, i) => i % 2 === 1).reverse(), ...pages.filter((_, i) => i % 2 === 0)];
}

describe.runIf(process.platform === "linux")("an NVMe controller's function", () => {
  it("is an NVM Express controller with a 64-bit BAR, MSI-X, power management and function level reset", async () => {
    const { guest } = await startGuest();
    expect(guest.config(0x09, 3)).toBe(0x01_08_02);
    expect(guest.config(0x10, 4) & 0xf).toBe(0x4);
    guest.setConfig(0x10, 0xffff_ffff, 4);
    expect(guest.config(0x10, 4)).toBe(0xffff_c004);
    const capabilities = new Map<number, number>();
    for (let at = guest.config(0x34, 1); at !== 0; at = guest.config(at + 1, 1))
      capabilities.set(guest.config(at, 1), at);
    expect([...capabilities.keys()]).toEqual([0x01, 0x11, 0x10]);
    const msix = capabilities.get(0x11) ?? 0;
    expect(guest.config(msix + 2, 2)).toBe(MAX_IO_QUEUES);
    expect([guest.config(msix + 4, 4), guest.config(msix + 8, 4)]).toEqual([0x2000, 0x3000]);
    const express = capabilities.get(0x10) ?? 0;
    expect(guest.config(express + 4, 4) & 0x1000_0000).not.toBe(0);
  });

  it("does DMA only while its driver lets it and it is awake", async () => {
    const { guest } = await startGuest();
    expect(guest.device.busMaster).toBe(true);
    guest.setConfig(0x44, 3, 2);
    expect(guest.device.busMaster).toBe(false);
    guest.setConfig(0x44, 0, 2);
    guest.setConfig(0x04, 0x2, 2);
    expect(guest.device.busMaster).toBe(false);
  });

  it("keeps its identity against writes", async () => {
    const { guest } = await startGuest();
    const before = guest.config(0, 4);
    guest.setConfig(0, 0xffff_ffff, 4);
    guest.setConfig(0x52, 0xffff, 2);
    expect(guest.config(0, 4)).toBe(before);
    expect(guest.config(0x52, 2)).toBe(0xc000 | MAX_IO_QUEUES);
  });

  it("is as after power-on when a function level reset was asked for", async () => {
    const { guest } = await startGuest();
    guest.setConfig(0x68, 0x8000, 2);
    expect(guest.register(REGISTER.CC)).toBe(0);
    expect(guest.register(REGISTER.CSTS)).toBe(0);
    expect(guest.register(REGISTER.ASQ)).toBe(0);
    expect(guest.device.busMaster).toBe(false);
  });

  it("keeps its MSI-X table as it was written", async () => {
    const { guest } = await startGuest();
    guest.setRegister(0x2010, 0xfee0_0000);
    expect(guest.register(0x2010)).toBe(0xfee0_0000);
    expect(guest.register(0x3000)).toBe(0);
  });
});

describe.runIf(process.platform === "linux")("an NVMe controller's registers", () => {
  it("tell version 1.4, queues of 1024 entries, and doorbells 4 bytes apart", async () => {
    const { guest } = await startGuest();
    expect(guest.register(REGISTER.VS)).toBe(0x0001_0400);
    expect(guest.register(REGISTER.CAP) & 0xffff).toBe(1023);
    expect(guest.register(REGISTER.CAP) & 0x1_0000).not.toBe(0);
    expect(guest.register(REGISTER.CAP + 4) & 0xf).toBe(0);
    expect(guest.register(REGISTER.CAP + 4) & 0x20).not.toBe(0);
  });

  it("can be read whole, and take 64-bit writes", async () => {
    const { guest } = await startGuest();
    const all = new Uint8Array(0x1000);
    guest.device.regionRead(0, 0, all);
    expect(new DataView(all.buffer).getUint32(REGISTER.VS, true)).toBe(0x0001_0400);
    const value = new Uint8Array(8);
    new DataView(value.buffer).setBigUint64(0, 0x12_3456_7000n, true);
    guest.device.regionWrite(0, REGISTER.ASQ, value);
    expect([guest.register(REGISTER.ASQ), guest.register(REGISTER.ASQ + 4)]).toEqual([0x3456_7000, 0x12]);
  });

  it.each([
    ["a memory page size that it hasn't", CC.EN | (1 << 7)],
    ["another command set", CC.EN | (1 << 4)],
    ["another arbitration", CC.EN | (1 << 11)],
  ])("show a fatal error for %s, until a reset", async (_, cc) => {
    const { guest } = await startGuest();
    guest.setRegister(REGISTER.CC, 0);
    guest.setRegister(REGISTER.CC, cc);
    expect(guest.register(REGISTER.CSTS)).toBe(CSTS.CFS);
    guest.setRegister(REGISTER.CC, 0);
    expect(guest.register(REGISTER.CSTS)).toBe(0);
    guest.enable();
    expect(guest.identify().subarray(24, 36).toString()).toBe("Dirtmap NVMe");
  });

  it("show a fatal error where a queue is in no memory", async () => {
    const { guest } = await startGuest();
    guest.setRegister(REGISTER.CC, 0);
    guest.setRegister(REGISTER.ASQ + 4, 0x100);
    guest.setRegister(REGISTER.CC, CC.EN);
    guest.setRegister(DOORBELLS, 1);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.register(REGISTER.CSTS) & CSTS.CFS).not.toBe(0);
  });

  it("keep the admin queues' places over a controller reset, and forget the I/O queues", async () => {
    const { guest } = await startGuest();
    const asq = guest.register(REGISTER.ASQ);
    guest.setRegister(REGISTER.CC, 0);
    expect(guest.register(REGISTER.CSTS)).toBe(0);
    expect(guest.register(REGISTER.ASQ)).toBe(asq);
    guest.enable();
    guest.createQueues(1, 16);
  });

  it.each([
    ["disabled", (guest: Guest) => guest.setRegister(REGISTER.CC, 0), 0],
    ["reset as a subsystem", (guest: Guest) => guest.setRegister(REGISTER.NSSR, NSSR_RESET), CSTS.NSSRO],
    ["reset as a function", (guest: Guest) => guest.setConfig(0x68, 0x8000, 2), 0],
  ])("show that it works until a command has ended in which it is %s", async (_, reset, csts) => {
    const { guest } = await startGuest();
    const { dma } = guest.context;
    const write = dma.write.bind(dma);
    const seen: number[] = [];
    dma.write = (...args) => {
      if (seen.length === 0) {
        reset(guest);
        seen.push(guest.register(REGISTER.CSTS));
      }
      return write(...args);
    };
    for (let i = 0; i < 3; i++) guest.queue(1, read(i, 1, { prp1: guest.allocate(PAGE_SIZE) }));
    guest.ring(1);
    guest.device.run(UNTIL_IDLE_MS);
    expect(seen).toEqual([CSTS.RDY]);
    expect(guest.register(REGISTER.CSTS)).toBe(csts);
    expect(guest.device.counters().reads).toBe(1);
    dma.write = write;
    guest.enable();
    guest.createQueues(1, 8);
  });

  it("tell that a shutdown is complete, after which no command is fetched", async () => {
    const { guest } = await startGuest();
    guest.setRegister(REGISTER.CC, guest.register(REGISTER.CC) | (1 << 14));
    expect(guest.register(REGISTER.CSTS) & CSTS.SHST).toBe(CSTS.SHST_COMPLETE);
    guest.queue(1, { opcode: IO.FLUSH, nsid: NSID });
    guest.ring(1);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(1)).toEqual([]);
  });

  it("tell of a subsystem reset until that is acknowledged", async () => {
    const { guest } = await startGuest();
    guest.setRegister(REGISTER.NSSR, NSSR_RESET);
    expect(guest.register(REGISTER.CSTS)).toBe(CSTS.NSSRO);
    guest.setRegister(REGISTER.CSTS, CSTS.NSSRO);
    expect(guest.register(REGISTER.CSTS)).toBe(0);
  });
});

describe.runIf(process.platform === "linux")("an NVMe controller's admin commands", () => {
  it("identify the controller", async () => {
    const { guest } = await startGuest({ serial: "disk-7" });
    const data = guest.identify();
    expect(data.subarray(4, 24).toString()).toBe("disk-7".padEnd(20));
    expect(data.readUInt32LE(80)).toBe(0x0001_0400);
    expect(2 ** data[77] * PAGE_SIZE).toBe(MAX_TRANSFER_BYTES);
    expect([data[512], data[513]]).toEqual([0x66, 0x44]);
    expect(data.readUInt32LE(516)).toBe(1);
    expect(data.subarray(768, 804).toString()).toBe(
      "nqn.2014-08.org.nvmexpress:uuid:".padEnd(36, data.subarray(800, 804).toString()),
    );
  });

  it("identify the namespace, the list of namespaces, and a UUID that is the disk's own", async () => {
    const { guest } = await startGuest();
    const namespace = guest.identify(CNS.NAMESPACE, NSID);
    expect(namespace.readBigUInt64LE(0)).toBe(BigInt(BLOCKS));
    expect(2 ** namespace[130]).toBe(BLOCK);
    expect(guest.identify(CNS.ACTIVE_NAMESPACES, 0).readUInt32LE(0)).toBe(NSID);
    expect(guest.identify(CNS.ACTIVE_NAMESPACES, NSID).readUInt32LE(0)).toBe(0);
    const { guest: other } = await startGuest();
    const [uuid, otherUuid] = [guest, other].map((g) => g.identify(CNS.NAMESPACE_DESCRIPTORS, NSID).subarray(0, 24));
    expect([...uuid.subarray(0, 2)]).toEqual([3, 16]);
    expect(uuid.equals(otherUuid)).toBe(false);
  });

  it.each([
    ["a namespace that there isn't", { opcode: ADMIN.IDENTIFY, nsid: 2 }, STATUS.INVALID_NAMESPACE],
    ["all namespaces at once", { opcode: ADMIN.IDENTIFY, nsid: NSID_ALL }, STATUS.INVALID_NAMESPACE],
    ["an unknown data structure", { opcode: ADMIN.IDENTIFY, dword10: 0x1f }, STATUS.INVALID_FIELD],
    ["an unknown log page", { opcode: ADMIN.GET_LOG_PAGE, dword10: 0x70 }, STATUS.INVALID_LOG_PAGE],
    [
      "a log page from behind its end",
      { opcode: ADMIN.GET_LOG_PAGE, dword10: LOG.SMART, dword12: 516 },
      STATUS.INVALID_FIELD,
    ],
    ["an unknown command", { opcode: 0x7f }, STATUS.INVALID_OPCODE],
    ["a keep alive", { opcode: 0x18 }, STATUS.INVALID_OPCODE],
    ["a command with SGLs", { opcode: ADMIN.IDENTIFY, flags: 0x40, dword10: 1 }, STATUS.INVALID_FIELD],
    ["an unknown feature", { opcode: ADMIN.GET_FEATURES, dword10: 0x7e }, STATUS.INVALID_FIELD],
    ["setting an unknown feature", { opcode: ADMIN.SET_FEATURES, dword10: 0x7e }, STATUS.INVALID_FIELD],
    ["saving a feature", { opcode: ADMIN.SET_FEATURES, dword10: 0x8000_0001 }, STATUS.FEATURE_NOT_SAVEABLE],
    ["a power state that there isn't", { opcode: ADMIN.SET_FEATURES, dword10: 2, dword11: 1 }, STATUS.INVALID_FIELD],
    ["65536 queues", { opcode: ADMIN.SET_FEATURES, dword10: 7, dword11: 0xffff }, STATUS.INVALID_FIELD],
    [
      "a number of queues while there are some",
      { opcode: ADMIN.SET_FEATURES, dword10: 7, dword11: 1 },
      STATUS.COMMAND_SEQUENCE_ERROR,
    ],
    [
      "a completion queue 0",
      { opcode: ADMIN.CREATE_CQ, dword10: 7 << 16, dword11: 1 },
      STATUS.INVALID_QUEUE_IDENTIFIER,
    ],
    [
      "a completion queue too many",
      { opcode: ADMIN.CREATE_CQ, dword10: (7 << 16) | 17, dword11: 1 },
      STATUS.INVALID_QUEUE_IDENTIFIER,
    ],
    [
      "a completion queue again",
      { opcode: ADMIN.CREATE_CQ, dword10: (7 << 16) | 1, dword11: 1 },
      STATUS.INVALID_QUEUE_IDENTIFIER,
    ],
    ["a completion queue of one entry", { opcode: ADMIN.CREATE_CQ, dword10: 2, dword11: 1 }, STATUS.INVALID_QUEUE_SIZE],
    [
      "a completion queue that is too long",
      { opcode: ADMIN.CREATE_CQ, dword10: (1024 << 16) | 2, dword11: 1 },
      STATUS.INVALID_QUEUE_SIZE,
    ],
    ["a completion queue in pieces", { opcode: ADMIN.CREATE_CQ, dword10: (7 << 16) | 2 }, STATUS.INVALID_FIELD],
    [
      "a vector that there isn't",
      { opcode: ADMIN.CREATE_CQ, dword10: (7 << 16) | 2, dword11: (17 << 16) | 3 },
      STATUS.INVALID_INTERRUPT_VECTOR,
    ],
    [
      "a completion queue inside a page",
      { opcode: ADMIN.CREATE_CQ, prp1: 0x100040, dword10: (7 << 16) | 2, dword11: 1 },
      STATUS.INVALID_PRP_OFFSET,
    ],
    [
      "a submission queue again",
      { opcode: ADMIN.CREATE_SQ, dword10: (7 << 16) | 1, dword11: (1 << 16) | 1 },
      STATUS.INVALID_QUEUE_IDENTIFIER,
    ],
    [
      "a submission queue of one entry",
      { opcode: ADMIN.CREATE_SQ, dword10: 2, dword11: (1 << 16) | 1 },
      STATUS.INVALID_QUEUE_SIZE,
    ],
    [
      "a submission queue in pieces",
      { opcode: ADMIN.CREATE_SQ, dword10: (7 << 16) | 2, dword11: 1 << 16 },
      STATUS.INVALID_FIELD,
    ],
    [
      "a submission queue without a completion queue",
      { opcode: ADMIN.CREATE_SQ, dword10: (7 << 16) | 2, dword11: (2 << 16) | 1 },
      STATUS.COMPLETION_QUEUE_INVALID,
    ],
    [
      "a submission queue for the admin completion queue",
      { opcode: ADMIN.CREATE_SQ, dword10: (7 << 16) | 2, dword11: 1 },
      STATUS.INVALID_QUEUE_IDENTIFIER,
    ],
    [
      "a submission queue inside a page",
      { opcode: ADMIN.CREATE_SQ, prp1: 0x100040, dword10: (7 << 16) | 2, dword11: (1 << 16) | 1 },
      STATUS.INVALID_PRP_OFFSET,
    ],
    [
      "deleting a completion queue that is in use",
      { opcode: ADMIN.DELETE_CQ, dword10: 1 },
      STATUS.INVALID_QUEUE_DELETION,
    ],
    ["deleting the admin completion queue", { opcode: ADMIN.DELETE_CQ, dword10: 0 }, STATUS.INVALID_QUEUE_IDENTIFIER],
    [
      "deleting a submission queue that there isn't",
      { opcode: ADMIN.DELETE_SQ, dword10: 9 },
      STATUS.INVALID_QUEUE_IDENTIFIER,
    ],
  ])("refuse %s", async (_, command, status) => {
    const { guest } = await startGuest();
    const prp1 = guest.allocate(PAGE_SIZE);
    guest.admin({ prp1, ...command }, status);
  });

  it("refuse data that lies in no memory", async () => {
    const { guest } = await startGuest();
    const command = { opcode: ADMIN.IDENTIFY, dword10: CNS.CONTROLLER };
    guest.admin({ ...command, prp1: 2 ** 40 }, STATUS.DATA_TRANSFER_ERROR);
    guest.admin({ ...command, prp1: guest.allocate(PAGE_SIZE) + 2 }, STATUS.INVALID_PRP_OFFSET);
  });

  it("give all queues that there are, and delete and make them again", async () => {
    const { guest } = await startGuest({}, { ioQueues: 0 });
    const { result } = guest.admin(
      { opcode: ADMIN.SET_FEATURES, dword10: FEATURE.NUMBER_OF_QUEUES, dword11: 0x0003_0003 },
      0,
    );
    expect(result).toBe(((MAX_IO_QUEUES - 1) << 16) | (MAX_IO_QUEUES - 1));
    for (let round = 0; round < 2; round++) {
      for (let id = 1; id <= MAX_IO_QUEUES; id++) guest.createQueues(id, 8);
      for (let id = 1; id <= MAX_IO_QUEUES; id++) {
        expect(guest.execute(id, { opcode: IO.FLUSH, nsid: NSID }).status).toBe(0);
        guest.admin({ opcode: ADMIN.DELETE_SQ, dword10: id }, 0);
        guest.admin({ opcode: ADMIN.DELETE_CQ, dword10: id }, 0);
      }
    }
  });

  it("keep features' values until a reset", async () => {
    const { guest } = await startGuest();
    const set = (feature: number, value: number) =>
      guest.admin({ opcode: ADMIN.SET_FEATURES, dword10: feature, dword11: value }, 0);
    const get = (feature: number, dword11 = 0) =>
      guest.admin({ opcode: ADMIN.GET_FEATURES, dword10: feature, dword11 }, 0).result;
    set(FEATURE.VOLATILE_WRITE_CACHE, 0);
    set(FEATURE.INTERRUPT_COALESCING, 0x1234);
    set(FEATURE.INTERRUPT_VECTOR, 0x1_0003);
    expect(get(FEATURE.VOLATILE_WRITE_CACHE)).toBe(0);
    expect(get(FEATURE.INTERRUPT_COALESCING)).toBe(0x1234);
    expect(get(FEATURE.INTERRUPT_VECTOR, 3)).toBe(0x1_0003);
    expect(get(FEATURE.INTERRUPT_VECTOR, 4)).toBe(4);
    guest.setRegister(REGISTER.CC, 0);
    guest.enable();
    expect(get(FEATURE.VOLATILE_WRITE_CACHE)).toBe(1);
    expect(get(FEATURE.INTERRUPT_VECTOR, 3)).toBe(3);
  });

  it("hold requests for events, of which a fifth is refused, and abort one of them", async () => {
    const { guest } = await startGuest();
    const request = { opcode: ADMIN.ASYNC_EVENT_REQUEST };
    const held = Array.from({ length: 4 }, () => guest.queue(0, request));
    guest.ring(0);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(0)).toEqual([]);
    guest.admin(request, STATUS.ASYNC_EVENT_LIMIT);
    const abort = guest.queue(0, { opcode: ADMIN.ABORT, dword10: (held[1] << 16) | 0 });
    guest.ring(0);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(0)).toEqual([
      { queue: 0, cid: held[1], status: STATUS.ABORT_REQUESTED, result: 0 },
      { queue: 0, cid: abort, status: 0, result: 0 },
    ]);
    expect(guest.admin({ opcode: ADMIN.ABORT, dword10: (held[1] << 16) | 0 }, 0).result).toBe(1);
  });

  it("tell of a wrong doorbell once, and again after the error log was read", async () => {
    const { guest } = await startGuest();
    const requests = [0, 1].map(() => guest.queue(0, { opcode: ADMIN.ASYNC_EVENT_REQUEST }));
    guest.ring(0);
    guest.setRegister(DOORBELLS + 9 * 8, 1);
    guest.setRegister(DOORBELLS + 8, 64);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(0)).toEqual([{ queue: 0, cid: requests[0], status: 0, result: LOG.ERROR << 16 }]);
    const log = guest.queue(0, {
      opcode: ADMIN.GET_LOG_PAGE,
      prp1: guest.allocate(PAGE_SIZE),
      dword10: (15 << 16) | LOG.ERROR,
    });
    guest.ring(0);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(0).map(({ cid, result }) => [cid, result])).toEqual([
      [log, 0],
      [requests[1], (LOG.ERROR << 16) | (1 << 8)],
    ]);
  });

  it("refuse a completion doorbell that takes more than was posted", async () => {
    const { guest } = await startGuest();
    const request = guest.queue(0, { opcode: ADMIN.ASYNC_EVENT_REQUEST });
    guest.ring(0);
    guest.setRegister(DOORBELLS + 8 + 4, 3);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(0)).toEqual([{ queue: 0, cid: request, status: 0, result: (LOG.ERROR << 16) | (1 << 8) }]);
  });

  it.each([0x1_0000_0000n, 2n ** 53n + 1n, 2n ** 64n - 1024n, 2n ** 64n - 1n])(
    "log that block %d is none, exactly",
    async (block) => {
      const { guest } = await startGuest();
      const prp1 = guest.allocate(PAGE_SIZE);
      for (const opcode of [IO.READ, IO.WRITE, IO.WRITE_ZEROES, IO.FLUSH, 0x7e]) {
        const [dword10, dword11] = [Number(block & 0xffff_ffffn), Number(block >> 32n)];
        guest.execute(1, { opcode, nsid: opcode === IO.FLUSH ? 2 : NSID, dword10, dword11, prp1 });
        const page = guest.allocate(PAGE_SIZE);
        guest.admin({ opcode: ADMIN.GET_LOG_PAGE, prp1: page, dword10: (15 << 16) | LOG.ERROR }, 0);
        expect(guest.view(page, 64).getBigUint64(16, true)).toBe(block);
      }
    },
  );

  it("log what went wrong, and what the disk has done", async () => {
    const { guest } = await startGuest();
    const prp1 = guest.allocate(PAGE_SIZE);
    const bad = guest.execute(1, read(BLOCKS, 1, { prp1 }));
    guest.execute(1, read(0, 8, { prp1 }));
    guest.execute(1, write(0, 4, { prp1 }));
    const page = guest.allocate(PAGE_SIZE);
    const log = (id: number, dword12 = 0) => {
      guest.admin({ opcode: ADMIN.GET_LOG_PAGE, prp1: page, dword10: (127 << 16) | id, dword12 }, 0);
      return Buffer.from(guest.at(page, 512));
    };
    const errors = log(LOG.ERROR);
    expect(errors.readBigUInt64LE(0)).toBe(1n);
    expect([errors.readUInt16LE(8), errors.readUInt16LE(10)]).toEqual([1, bad.cid]);
    expect(errors.readUInt16LE(12) >> 1).toBe(STATUS.LBA_OUT_OF_RANGE);
    expect(errors.readBigUInt64LE(16)).toBe(BigInt(BLOCKS));
    expect(log(LOG.ERROR, 64).readBigUInt64LE(0)).toBe(0n);
    const smart = log(LOG.SMART);
    expect([32, 48, 64, 80, 160].map((at) => Number(smart.readBigUInt64LE(at)))).toEqual([1, 1, 1, 1, 0]);
    expect(log(LOG.FIRMWARE_SLOT)[0]).toBe(1);
  });
});

describe.runIf(process.platform === "linux")("an NVMe controller's disk", () => {
  it("is read and written as a plain file would be, through PRPs of every shape", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            write: fc.boolean(),
            block: fc.nat(BLOCKS - 1),
            blocks: fc.oneof(fc.integer({ min: 1, max: 24 }), fc.integer({ min: 1, max: MAX_TRANSFER_BYTES / BLOCK })),
            offset: fc.nat(PAGE_SIZE / 4 - 1).map((dwords) => dwords * 4),
            listEntries: fc.integer({ min: 1, max: 512 }),
            seed: fc.nat(255),
          }),
          { minLength: 1, maxLength: 8 },
        ),
        async (steps) => {
          using disk = new DiskFile({ bytes: DISK_BYTES });
          const guest = await Guest.start({ file: disk.path });
          using _device = guest.device;
          const model = Buffer.alloc(DISK_BYTES);
          for (const { write: writes, block, blocks: wanted, offset, listEntries, seed } of steps) {
            const blocks = Math.min(wanted, BLOCKS - block);
            const bytes = blocks * BLOCK;
            const pages = scatteredPages(guest, Math.ceil((offset + bytes) / PAGE_SIZE));
            const list = guest.allocate(PAGE_SIZE) + PAGE_SIZE - listEntries * 8;
            const prp = describeBuffer(guest, { pages, offset, list });
            const parts = pages.map((page, i) => {
              const from = i === 0 ? offset : 0;
              const at = i === 0 ? 0 : i * PAGE_SIZE - offset;
              return { memory: guest.at(page + from, Math.min(PAGE_SIZE - from, bytes - at)), at };
            });
            if (writes) {
              const data = Buffer.from(Uint8Array.from({ length: bytes }, (_, i) => (i * 31 + (i >> 9) + seed) & 0xff));
              for (const { memory, at } of parts) memory.set(data.subarray(at, at + memory.byteLength));
              data.copy(model, block * BLOCK);
            }
            const { status } = guest.execute(1, (writes ? write : read)(block, blocks, prp));
            expect(status).toBe(0);
            const expected = model.subarray(block * BLOCK, block * BLOCK + bytes);
            for (const { memory, at } of parts) {
              expect(Buffer.compare(memory, expected.subarray(at, at + memory.byteLength))).toBe(0);
            }
          }
          expect(readFileSync(disk.path).equals(model)).toBe(true);
        },
      ),
      { numRuns: 40 },
    );
  });

  it("has blocks of 4096 bytes if asked for", async () => {
    const { guest, disk } = await startGuest({ blockBytes: 4096 });
    expect(2 ** guest.identify(CNS.NAMESPACE, NSID)[130]).toBe(4096);
    const prp1 = guest.allocate(PAGE_SIZE);
    guest.at(prp1, PAGE_SIZE).fill(0x5a);
    expect(guest.execute(1, write(3, 1, { prp1 })).status).toBe(0);
    expect(guest.execute(1, write(DISK_BYTES / 4096, 1, { prp1 })).status).toBe(STATUS.LBA_OUT_OF_RANGE);
    expect(readFileSync(disk.path).indexOf(0x5a)).toBe(3 * 4096);
  });

  it("zeroes any number of blocks", async () => {
    const { guest, disk } = await startGuest();
    writeFileSync(disk.path, Buffer.alloc(DISK_BYTES, 0xff));
    const command = { opcode: IO.WRITE_ZEROES, nsid: NSID, dword10: 3, dword12: 2999 };
    expect(guest.execute(1, command).status).toBe(0);
    const file = readFileSync(disk.path);
    expect(file.indexOf(0)).toBe(3 * BLOCK);
    expect(file.lastIndexOf(0)).toBe(3003 * BLOCK - 1);
    expect(file.subarray(3 * BLOCK, 3003 * BLOCK).every((byte) => byte === 0)).toBe(true);
  });

  it("flushes one namespace or all, and after a write with FUA or without a write cache", async () => {
    const { guest } = await startGuest();
    expect(guest.execute(1, { opcode: IO.FLUSH, nsid: NSID }).status).toBe(0);
    expect(guest.execute(1, { opcode: IO.FLUSH, nsid: NSID_ALL }).status).toBe(0);
    const prp1 = guest.allocate(PAGE_SIZE);
    const durable = write(0, 1, { prp1 });
    expect(guest.execute(1, { ...durable, dword12: FUA }).status).toBe(0);
    guest.admin({ opcode: ADMIN.SET_FEATURES, dword10: FEATURE.VOLATILE_WRITE_CACHE, dword11: 0 }, 0);
    expect(guest.execute(1, durable).status).toBe(0);
  });

  it.each([
    ["a block behind the end", { dword10: BLOCKS }, STATUS.LBA_OUT_OF_RANGE],
    ["blocks over the end", { dword10: BLOCKS - 1, dword12: 1 }, STATUS.LBA_OUT_OF_RANGE],
    ["a block number above 2^53", { dword11: 0xffff_ffff }, STATUS.LBA_OUT_OF_RANGE],
    ["more than it transfers at once", { dword12: MAX_TRANSFER_BYTES / BLOCK }, STATUS.INVALID_FIELD],
    ["no namespace", { nsid: 0 }, STATUS.INVALID_NAMESPACE],
    ["a namespace that there isn't", { nsid: 2 }, STATUS.INVALID_NAMESPACE],
    ["all namespaces", { nsid: NSID_ALL }, STATUS.INVALID_NAMESPACE],
    ["a fused command", { flags: 1 }, STATUS.INVALID_FIELD],
    ["SGLs", { flags: 0x40 }, STATUS.INVALID_FIELD],
    ["PRP 1 at an odd address", { prp1: 0x10_0001 }, STATUS.INVALID_PRP_OFFSET],
    ["PRP 2 inside a page", { dword12: 15, prp2: 0x10_0200 }, STATUS.INVALID_PRP_OFFSET],
    [
      "a PRP list at an address that isn't a multiple of 8",
      { dword12: 31, prp2: 0x10_0204 },
      STATUS.INVALID_PRP_OFFSET,
    ],
    ["a PRP list in no memory", { dword12: 31, prp2: 2 ** 40 }, STATUS.DATA_TRANSFER_ERROR],
    ["data in no memory", { prp1: 2 ** 40 }, STATUS.DATA_TRANSFER_ERROR],
  ])("refuses %s, to read and to write", async (_, fields, status) => {
    const { guest, disk } = await startGuest();
    const before = readFileSync(disk.path);
    const prp1 = guest.allocate(PAGE_SIZE);
    for (const command of [read(0, 1, { prp1 }), write(0, 1, { prp1 })]) {
      expect(guest.execute(1, { ...command, ...fields }).status).toBe(status);
    }
    expect(readFileSync(disk.path).equals(before)).toBe(true);
  });

  it("refuses a PRP list with an entry inside a page", async () => {
    const { guest } = await startGuest();
    const pages = scatteredPages(guest, 4);
    const prp = describeBuffer(guest, { pages });
    guest.view(prp.prp2 + 8, 8).setBigUint64(0, BigInt(pages[2] + 512), true);
    expect(guest.execute(1, read(0, 32, prp)).status).toBe(STATUS.INVALID_PRP_OFFSET);
  });

  it("refuses unknown commands", async () => {
    const { guest } = await startGuest();
    expect(guest.execute(1, { opcode: 0x7e, nsid: NSID }).status).toBe(STATUS.INVALID_OPCODE);
  });

  it("reports a file that became shorter as a medium that can't be read", async () => {
    const { guest, disk } = await startGuest();
    truncateSync(disk.path, DISK_BYTES / 2);
    const prp1 = guest.allocate(PAGE_SIZE);
    expect(guest.execute(1, read(BLOCKS - 8, 1, { prp1 })).status).toBe(STATUS.UNRECOVERED_READ_ERROR);
    expect(guest.device.counters().mediaErrors).toBe(1);
  });

  it("interrupts with each completion queue's own vector", async () => {
    const { guest } = await startGuest({}, { ioQueues: 3 });
    guest.context.vectors.length = 0;
    guest.execute(2, { opcode: IO.FLUSH, nsid: NSID });
    guest.execute(3, { opcode: IO.FLUSH, nsid: NSID });
    expect(guest.context.vectors).toEqual([2, 3]);
  });

  it("interrupts with messages of MSI, unless INTMS masks them", async () => {
    const { guest } = await startGuest({ interrupts: "msi" }, { ioQueues: 2 });
    expect([guest.config(0x3d, 1), guest.config(0x50, 1), guest.config(0x52, 2)]).toEqual([0, 5, 0x88]);
    guest.setConfig(0x52, 0xffff, 2);
    expect(guest.config(0x52, 2)).toBe(0x88 | 0x71);
    guest.setRegister(REGISTER.INTMS, 1 << 2);
    guest.context.vectors.length = 0;
    guest.execute(1, { opcode: IO.FLUSH, nsid: NSID });
    guest.execute(2, { opcode: IO.FLUSH, nsid: NSID });
    expect(guest.context.vectors).toEqual([1]);
    guest.setRegister(REGISTER.INTMC, 1 << 2);
    expect(guest.context.vectors).toEqual([1, 2]);
  });

  it("asserts INTx while there are completions that the guest has not taken, and may", async () => {
    const { guest } = await startGuest({ interrupts: "intx" }, { ioQueues: 0 });
    const { context } = guest;
    expect([guest.config(0x3d, 1), guest.config(0x41, 1)]).toEqual([1, 0x60]);
    expect(context.intx).toBe(false);
    guest.queue(0, { opcode: ADMIN.GET_FEATURES, dword10: FEATURE.INTERRUPT_COALESCING });
    guest.ring(0);
    guest.device.run(UNTIL_IDLE_MS);
    expect([context.intx, guest.config(0x06, 2)]).toEqual([true, 0x18]);
    guest.setRegister(REGISTER.INTMS, 1);
    expect([context.intx, guest.config(0x06, 2)]).toEqual([false, 0x10]);
    guest.setRegister(REGISTER.INTMC, 1);
    expect(context.intx).toBe(true);
    guest.setConfig(0x04, 0x406, 2);
    expect(context.intx).toBe(false);
    guest.setConfig(0x04, 0x6, 2);
    expect(context.intx).toBe(true);
    guest.take(0);
    expect(context.intx).toBe(false);
  });

  it("refuses a completion queue a vector that its kind of interrupts lacks", async () => {
    const { guest } = await startGuest({ interrupts: "intx" }, { ioQueues: 0 });
    const queue = { opcode: ADMIN.CREATE_CQ, prp1: guest.allocate(PAGE_SIZE), dword10: (7 << 16) | 1 };
    expect(guest.execute(0, { ...queue, dword11: (1 << 16) | 3 }).status).toBe(STATUS.INVALID_INTERRUPT_VECTOR);
    expect(guest.execute(0, { ...queue, dword11: 3 }).status).toBe(STATUS.SUCCESS);
  });

  it("ends a slice after the command in which its budget is over, and gives each queue its turn", async () => {
    const { guest } = await startGuest({}, { ioQueues: 3 });
    const prp1 = guest.allocate(PAGE_SIZE);
    for (const queue of [1, 2, 3]) {
      for (let i = 0; i < 8; i++) guest.queue(queue, read(0, 1, { prp1 }));
      guest.ring(queue);
    }
    const before = guest.device.counters().commands;
    for (let slice = 1; slice <= 6; slice++) {
      expect(guest.device.run(0)).toBe(0);
      expect(guest.device.counters().commands - before).toBe(slice);
    }
    expect([1, 2, 3].map((queue) => guest.take(queue).length)).toEqual([2, 2, 2]);
  });

  it("posts no more than the completion queue has room for, and goes on when there is room", async () => {
    const { guest } = await startGuest({}, { entries: 4 });
    // The submission queue is refilled while nothing is taken: 3 completions fill their queue.
    const cids: number[] = [];
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 3; i++) cids.push(guest.queue(1, { opcode: IO.FLUSH, nsid: NSID }));
      guest.ring(1);
      guest.device.run(UNTIL_IDLE_MS);
    }
    const first = guest.take(1);
    expect(first.map(({ cid }) => cid)).toEqual(cids.slice(0, 3));
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(1).map(({ cid }) => cid)).toEqual(cids.slice(3));
  });
});

describe.runIf(process.platform === "linux")("an NVMe controller's file", () => {
  it.each([
    ["is missing", (folder: string) => join(folder, "none.img"), "ENOENT"],
    ["is a directory", (folder: string) => folder, "it is a folder; a regular file is expected"],
    ["is a device", () => "/dev/null", "it is a device; a regular file is expected"],
    ["is empty", (folder: string) => made(folder, 0), "0 bytes"],
    ["is not whole blocks", (folder: string) => made(folder, 1000), "1000 bytes"],
  ])("is refused where it %s", (_, path, message) => {
    const { directory } = makeDisk();
    expect(() => new Nvme({ file: path(directory), blockBytes: BLOCK, incoming: false })).toThrow(message);
  });

  it("is refused with a block size or a serial number that can't be", () => {
    const { path: file } = makeDisk();
    expect(() => new Nvme({ file, blockBytes: 1024, incoming: false })).toThrow("1024");
    expect(() => new Nvme({ file, blockBytes: BLOCK, incoming: false, serial: "x".repeat(21) })).toThrow("serial");
  });

  it("belongs to one device at a time, until that one stops", async () => {
    const { guest, disk } = await startGuest();
    const options = { file: disk.path, blockBytes: BLOCK, incoming: false };
    using second = new Nvme(options);
    await expect(second.start(guest.context)).rejects.toMatchObject({ code: "DISK_LOCKED" });
    guest.device.quiesce();
    using third = new Nvme(options);
    await third.start(guest.context);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.context.failures).toHaveLength(1);
    expect(guest.context.failures[0]).toContain("locked");
  });

  it("stays the device's over a reset", async () => {
    const { guest, disk } = await startGuest();
    guest.device.quiesce();
    guest.device.reset();
    using second = new Nvme({ file: disk.path, blockBytes: BLOCK, incoming: false });
    await expect(second.start(guest.context)).rejects.toMatchObject({ code: "DISK_LOCKED" });
  });
});

describe.runIf(process.platform === "linux")("an NVMe controller's state", () => {
  it("loses and repeats no command, wherever in queued I/O it moves", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.oneof(
            {
              weight: 8,
              arbitrary: fc.record({
                kind: fc.constant("io" as const),
                queue: fc.integer({ min: 1, max: 3 }),
                slot: fc.nat(63),
                fill: fc.option(fc.nat(255)),
              }),
            },
            {
              weight: 3,
              arbitrary: fc.record({ kind: fc.constant("ring" as const), queue: fc.integer({ min: 1, max: 3 }) }),
            },
            { weight: 3, arbitrary: fc.record({ kind: fc.constant("run" as const) }) },
            {
              weight: 3,
              arbitrary: fc.record({
                kind: fc.constant("take" as const),
                queue: fc.integer({ min: 1, max: 3 }),
                most: fc.integer({ min: 1, max: 5 }),
              }),
            },
            { weight: 2, arbitrary: fc.record({ kind: fc.constant("move" as const) }) },
          ),
          { minLength: 20, maxLength: 120 },
        ),
        async (steps) => {
          using disk = new DiskFile({ bytes: DISK_BYTES });
          // Short queues: their ends and phases come round.
          const guest = await Guest.start({ file: disk.path }, { ioQueues: 3, entries: 7 });
          const open = new Map<string, { slot: number; page: number; fill: number | null }>();
          const model = new Map<number, number>();
          let completed = 0;
          let queued = 0;
          const take = (queue: number, most: number) => {
            for (const { queue: from, cid, status } of guest.take(queue, most)) {
              const key = `${from}:${cid}`;
              const command = open.get(key);
              if (command === undefined) throw new Error(`${key} was completed twice, or never queued`);
              open.delete(key);
              completed++;
              expect(status).toBe(0);
              const bytes = guest.at(command.page, PAGE_SIZE);
              if (command.fill === null) {
                const expected = model.get(command.slot) ?? 0;
                expect(bytes.every((byte) => byte === expected)).toBe(true);
              } else model.set(command.slot, command.fill);
            }
          };
          try {
            for (const step of steps) {
              if (step.kind === "io") {
                // Commands on a slot may run in any order: one at a time.
                if (!guest.hasRoom(step.queue) || [...open.values()].some(({ slot }) => slot === step.slot)) continue;
                const page = guest.allocate(PAGE_SIZE);
                guest.at(page, PAGE_SIZE).fill(step.fill ?? 0xee);
                const command = (step.fill === null ? read : write)(step.slot * 8, 8, { prp1: page });
                open.set(`${step.queue}:${guest.queue(step.queue, command)}`, { ...step, page });
                queued++;
              } else if (step.kind === "ring") guest.ring(step.queue);
              else if (step.kind === "run") guest.device.run(0);
              else if (step.kind === "take") take(step.queue, step.most);
              else await moveTo(guest, disk.path);
            }
            for (let round = 0; round < 20; round++) {
              for (const queue of [1, 2, 3]) guest.ring(queue);
              guest.device.run(UNTIL_IDLE_MS);
              for (const queue of [1, 2, 3]) take(queue, 100);
            }
            expect(open.size).toBe(0);
            expect(completed).toBe(queued);
            expect(guest.context.failures).toEqual([]);
          } finally {
            guest.device[Symbol.dispose]();
          }
        },
      ),
      { numRuns: 100 },
    );
  });

  it("carries requests for events, features, logs, identity and configuration space", async () => {
    const { guest, disk } = await startGuest({ serial: "moves" });
    const request = guest.queue(0, { opcode: ADMIN.ASYNC_EVENT_REQUEST });
    guest.ring(0);
    guest.admin({ opcode: ADMIN.SET_FEATURES, dword10: FEATURE.INTERRUPT_COALESCING, dword11: 77 }, 0);
    guest.execute(1, read(BLOCKS, 1, { prp1: 0x10_0000 }));
    guest.setRegister(0x2000, 0xfee0_1000);
    const before = guest.device.save();
    await moveTo(guest, disk.path);
    expect(Buffer.compare(guest.device.save(), before)).toBe(0);
    expect(guest.device.busMaster).toBe(true);
    expect(guest.identify().subarray(4, 9).toString()).toBe("moves");
    expect(guest.admin({ opcode: ADMIN.GET_FEATURES, dword10: FEATURE.INTERRUPT_COALESCING }, 0).result).toBe(77);
    guest.setRegister(DOORBELLS + 9 * 8, 1);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.take(0).map(({ cid }) => cid)).toEqual([request]);
  });

  it("interrupts again for completions that the guest has not taken: the interrupt may have been lost", async () => {
    const { guest, disk } = await startGuest();
    guest.queue(1, { opcode: IO.FLUSH, nsid: NSID });
    guest.ring(1);
    guest.device.run(UNTIL_IDLE_MS);
    guest.context.vectors.length = 0;
    await moveTo(guest, disk.path);
    guest.device.run(UNTIL_IDLE_MS);
    expect(guest.context.vectors).toEqual([1]);
  });

  it("lets INTx go while it is stopped, and asserts it again where it goes on", async () => {
    const interrupts = "intx";
    const { guest, disk } = await startGuest({ interrupts }, { ioQueues: 0 });
    const { context } = guest;
    guest.queue(0, { opcode: ADMIN.GET_FEATURES, dword10: FEATURE.INTERRUPT_COALESCING });
    guest.ring(0);
    guest.device.run(UNTIL_IDLE_MS);
    guest.device.quiesce();
    expect(context.intx).toBe(false);
    guest.device.run(UNTIL_IDLE_MS);
    expect(context.intx).toBe(true);
    await moveTo(guest, disk.path, { interrupts });
    guest.setConfig(0x04, 0x6, 2);
    expect(context.intx).toBe(false);
    guest.device.run(UNTIL_IDLE_MS);
    expect(context.intx).toBe(true);
    guest.take(0);
    expect(context.intx).toBe(false);
  });

  it("is refused of a function with other interrupts", async () => {
    const { guest, disk } = await startGuest({ interrupts: "msi" });
    await expect(moveTo(guest, disk.path)).rejects.toMatchObject({ code: "BAD_DEVICE_STATE" });
  });

  it("is refused where it is cut off or changed, and leaves a device that works after a reset", async () => {
    const { guest, disk } = await startGuest();
    guest.execute(1, { opcode: IO.FLUSH, nsid: NSID });
    guest.device.quiesce();
    const state = guest.device.save();
    const source = guest.device;
    disposables.push(source);
    const device = new Nvme({ file: disk.path, blockBytes: BLOCK, incoming: true });
    guest.device = device;
    await device.start(guest.context);
    fc.assert(
      fc.property(fc.nat(state.byteLength - 1), (length) => {
        expect(() => device.load(state.slice(0, length))).toThrow(/device state/);
      }),
      { numRuns: 50 },
    );
    fc.assert(
      fc.property(fc.nat(state.byteLength - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const changed = state.slice();
        changed[at] ^= change;
        // Not every byte can be told from another that would be right; a refusal has to be the one that is documented.
        try {
          device.load(changed);
        } catch (error) {
          expect(error).toMatchObject({ code: "BAD_DEVICE_STATE" });
        }
      }),
      { numRuns: 300 },
    );
    device.load(state);
    expect(guest.execute(1, { opcode: IO.FLUSH, nsid: NSID }).status).toBe(0);
  });

  it("of a disk of another size is refused", async () => {
    const { guest } = await startGuest();
    const other = makeDisk(DISK_BYTES / 2);
    using device = new Nvme({ file: other.path, blockBytes: BLOCK, incoming: true });
    expect(() => device.load(guest.device.save())).toThrow(/blocks/);
  });
});

function made(folder: string, bytes: number): string {
  const path = join(folder, "made.img");
  writeFileSync(path, new Uint8Array(bytes));
  return path;
}
