import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { type DrivenDevice, TestGuest } from "../guest.test.helper.js";
import { Nvme, type NvmeOptions } from "./nvme.js";
import { ADMIN, CC, CNS, CQE_BYTES, CSTS, DOORBELLS, REGISTER, SQE_BYTES } from "./spec.js";

/*
 * For tests of the model alone: what a guest's nvme driver does, over memory that the device reaches directly.
 */

/** Slices of work after which a command that is not done hangs. */
const MAX_SLICES = 1000;

/** A directory with a disk's file in it. */
export class DiskFile implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), "dirtmap-nvme-"));
  readonly path = join(this.directory, "disk.img");

  constructor({ bytes }: { bytes: number }) {
    const fd = openSync(this.path, "w");
    ftruncateSync(fd, bytes);
    closeSync(fd);
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A command: what is left out is 0. PRPs are byte addresses. */
export interface CommandFields {
  readonly opcode: number;
  readonly flags?: number;
  readonly nsid?: number;
  readonly prp1?: number;
  readonly prp2?: number;
  readonly dword10?: number;
  readonly dword11?: number;
  readonly dword12?: number;
  readonly dword13?: number;
}

export interface Completion {
  readonly queue: number;
  readonly cid: number;
  readonly status: number;
  readonly result: number;
}

interface Queue {
  readonly id: number;
  readonly entries: number;
  readonly sq: PageNumber;
  readonly cq: PageNumber;
  tail: number;
  head: number;
  phase: number;
}

/** The guest: its memory and queues, which stay as they are when the device under it is replaced by another. */
export class Guest<Device extends DrivenDevice = Nvme> extends TestGuest<Device> {
  readonly queues: Queue[] = [];
  #nextCid = 1;

  /** A started device that is enabled, with `ioQueues` pairs of `entries`. */
  static async start(
    options: Partial<NvmeOptions> & { file: string },
    { ioQueues = 1, entries = 64 }: { ioQueues?: number; entries?: number } = {},
  ): Promise<Guest> {
    const device = new Nvme({ blockBytes: 512, incoming: false, ...options });
    const guest = new Guest(device);
    await device.start(guest.context);
    guest.enable();
    for (let id = 1; id <= ioQueues; id++) guest.createQueues(id, entries);
    return guest;
  }

  /** Makes the admin queues, and switches the controller on. */
  enable(entries = 32): void {
    this.enableBusMaster();
    this.queues.length = 0;
    const queue = this.#makeQueue(0, entries);
    this.setRegister(REGISTER.AQA, ((entries - 1) << 16) | (entries - 1));
    this.setRegister(REGISTER.ASQ, queue.sq * PAGE_SIZE);
    this.setRegister(REGISTER.ASQ + 4, 0);
    this.setRegister(REGISTER.ACQ, queue.cq * PAGE_SIZE);
    this.setRegister(REGISTER.ACQ + 4, 0);
    this.setRegister(REGISTER.CC, CC.EN | (6 << CC.IOSQES_SHIFT) | (4 << CC.IOCQES_SHIFT));
    if ((this.register(REGISTER.CSTS) & CSTS.RDY) === 0) throw new Error("the controller is not ready");
  }

  /** A pair of I/O queues of the same identifier and vector. */
  createQueues(id: number, entries: number): void {
    const { sq, cq } = this.#makeQueue(id, entries);
    const size = ((entries - 1) << 16) | id;
    this.admin({ opcode: ADMIN.CREATE_CQ, prp1: cq * PAGE_SIZE, dword10: size, dword11: (id << 16) | 3 }, 0);
    this.admin({ opcode: ADMIN.CREATE_SQ, prp1: sq * PAGE_SIZE, dword10: size, dword11: (id << 16) | 1 }, 0);
  }

  /** True where another command fits. */
  hasRoom(id: number): boolean {
    const { tail, entries } = this.queues[id];
    return (tail + 1) % entries !== this.#sqHeads[id];
  }

  readonly #sqHeads: number[] = [];

  /** Writes a command into a queue; its doorbell is rung by {@link ring}. Returns its identifier. */
  queue(id: number, fields: CommandFields): number {
    const queue = this.queues[id];
    const cid = this.#nextCid;
    this.#nextCid = (this.#nextCid + 1) % 0x1_0000;
    const at = queue.sq * PAGE_SIZE + queue.tail * SQE_BYTES;
    this.at(at, SQE_BYTES).fill(0);
    const view = this.view(at, SQE_BYTES);
    view.setUint32(0, (fields.opcode | ((fields.flags ?? 0) << 8) | (cid << 16)) >>> 0, true);
    view.setUint32(4, fields.nsid ?? 0, true);
    view.setBigUint64(24, BigInt(fields.prp1 ?? 0), true);
    view.setBigUint64(32, BigInt(fields.prp2 ?? 0), true);
    view.setUint32(40, fields.dword10 ?? 0, true);
    view.setUint32(44, fields.dword11 ?? 0, true);
    view.setUint32(48, fields.dword12 ?? 0, true);
    view.setUint32(52, fields.dword13 ?? 0, true);
    queue.tail = (queue.tail + 1) % queue.entries;
    return cid;
  }

  /** Rings a submission queue's doorbell. */
  ring(id: number): void {
    this.setRegister(DOORBELLS + id * 8, this.queues[id].tail);
  }

  /** Takes what has been posted to a completion queue, and frees its entries. @param most entries that are taken */
  take(id: number, most = Number.POSITIVE_INFINITY): Completion[] {
    const queue = this.queues[id];
    const taken: Completion[] = [];
    for (; taken.length < most; ) {
      const view = this.view(queue.cq * PAGE_SIZE + queue.head * CQE_BYTES, CQE_BYTES);
      const last = view.getUint32(12, true);
      if (((last >>> 16) & 1) !== queue.phase) break;
      this.#sqHeads[id] = view.getUint16(8, true);
      taken.push({
        queue: view.getUint16(10, true),
        cid: last & 0xffff,
        status: last >>> 17,
        result: view.getUint32(0, true),
      });
      queue.head = (queue.head + 1) % queue.entries;
      if (queue.head === 0) queue.phase ^= 1;
    }
    if (taken.length > 0) this.setRegister(DOORBELLS + id * 8 + 4, queue.head);
    return taken;
  }

  /** Does one command, and returns its completion. */
  execute(id: number, fields: CommandFields): Completion {
    const cid = this.queue(id, fields);
    this.ring(id);
    for (let slice = 0; slice < MAX_SLICES; slice++) {
      this.device.run(1);
      const completion = this.take(id).find((taken) => taken.cid === cid);
      if (completion !== undefined) return completion;
    }
    throw new Error(`command ${fields.opcode} was not completed`);
  }

  /** An admin command that must end with this status. */
  admin(fields: CommandFields, status: number): Completion {
    const completion = this.execute(0, fields);
    if (completion.status !== status) {
      throw new Error(`admin command ${fields.opcode} ended with 0x${completion.status.toString(16)}`);
    }
    return completion;
  }

  /** Identify's data. */
  identify(cns: number = CNS.CONTROLLER, nsid = 0): Buffer {
    const prp1 = this.allocate(PAGE_SIZE);
    this.admin({ opcode: ADMIN.IDENTIFY, nsid, prp1, dword10: cns }, 0);
    return Buffer.from(this.at(prp1, PAGE_SIZE));
  }

  #makeQueue(id: number, entries: number): Queue {
    const queue = {
      id,
      entries,
      sq: this.allocate(entries * SQE_BYTES) / PAGE_SIZE,
      cq: this.allocate(entries * CQE_BYTES) / PAGE_SIZE,
      tail: 0,
      head: 0,
      phase: 1,
    };
    this.at(queue.cq * PAGE_SIZE, entries * CQE_BYTES).fill(0);
    this.queues[id] = queue;
    this.#sqHeads[id] = 0;
    return queue;
  }
}

/**
 * PRPs for a buffer that lies in these pages, in this order, and begins `offset` bytes into the first.
 * @param list where a list goes if one is needed, which may be inside a page: it is chained over further pages
 */
export function describeBuffer(
  guest: Guest<DrivenDevice>,
  { pages, offset = 0, list }: { pages: readonly number[]; offset?: number; list?: number },
): { prp1: number; prp2: number } {
  const prp1 = pages[0] + offset;
  if (pages.length < 2) return { prp1, prp2: 0 };
  if (pages.length === 2) return { prp1, prp2: pages[1] };
  const prp2 = list ?? guest.allocate(PAGE_SIZE);
  let at = prp2;
  for (let i = 1; i < pages.length; i++) {
    const isLastOfPage = at % PAGE_SIZE === PAGE_SIZE - 8;
    if (isLastOfPage && i < pages.length - 1) {
      const next = guest.allocate(PAGE_SIZE);
      guest.view(at, 8).setBigUint64(0, BigInt(next), true);
      at = next;
    }
    guest.view(at, 8).setBigUint64(0, BigInt(pages[i]), true);
    at += 8;
  }
  return { prp1, prp2 };
}
