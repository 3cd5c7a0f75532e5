import {
  ADMIN,
  CC,
  CNS,
  CQE_BYTES,
  DOORBELLS,
  FEATURE,
  IO,
  LOG,
  NSID,
  NSSR_RESET,
  REGISTER,
  SQE_BYTES,
} from "../../../src/devices/nvme/spec.js";
import { REGION } from "../../../src/devices/pci-model.js";
import { PAGE_SIZE } from "../../../src/memory/address.js";
import type { GuestOperation } from "./operation.js";
import { bar0, busMaster, fill, type Script, type Source, write } from "./script.js";

interface Queue {
  readonly id: number;
  readonly sq: number;
  readonly cq: number;
  readonly entries: number;
  tail: number;
  head: number;
  phase: number;
}

/** Blocks of the guest's disk. */
export const DISK_BLOCKS = 512;

/** What Linux's driver does, in any order. */
export class NvmeScript implements Script {
  readonly #source: Source;
  readonly #queues: (Queue | undefined)[] = [];
  #cid = 0;

  constructor(source: Source) {
    this.#source = source;
  }

  forget(): void {
    this.#queues.length = 0;
  }

  next(): GuestOperation[] {
    const { random } = this.#source;
    const [admin] = this.#queues;
    if (admin === undefined) return random.chance(90) ? this.#enable() : this.#io(random.below(4));
    return random.weighted<() => GuestOperation[]>([
      [30, () => this.#io(random.between(1, 3))],
      [12, () => this.#take(random.below(4))],
      [8, () => this.#admin(admin)],
      [6, () => this.#createQueues(random.between(1, 3))],
      [3, () => this.#doorbell()],
      [1, () => this.#enable()],
      [1, () => this.#reset()],
    ])();
  }

  #enable(): GuestOperation[] {
    const { random } = this.#source;
    const s = this.#source;
    const entries = random.pick([2, 8, 32, 64, 64, 65, 256]);
    const queue = this.#makeQueue(0, entries);
    this.#queues.length = 0;
    this.#queues[0] = queue;
    return [
      busMaster(),
      bar0(REGISTER.CC, s.u32(0)),
      bar0(REGISTER.AQA, s.u32(((entries - 1) << 16) | (entries - 1))),
      bar0(REGISTER.ASQ, s.u64(queue.sq)),
      bar0(REGISTER.ACQ, s.u64(queue.cq)),
      fill(queue.cq, new Uint8Array(Math.min(PAGE_SIZE, entries * CQE_BYTES))),
      bar0(REGISTER.CC, s.u32(CC.EN | (6 << CC.IOSQES_SHIFT) | (4 << CC.IOCQES_SHIFT))),
    ];
  }

  #createQueues(id: number): GuestOperation[] {
    const { random } = this.#source;
    const s = this.#source;
    const [admin] = this.#queues;
    if (admin === undefined) return [];
    const entries = random.pick([2, 3, 8, 32, 64, 128]);
    const isThere = this.#queues[id] !== undefined;
    const queue = this.#makeQueue(id, entries);
    this.#queues[id] = queue;
    const size = Number(s.twist(((entries - 1) << 16) | id, 32));
    // Sometimes an identifier that there is already, or that there isn't.
    return [
      ...(random.chance(isThere ? 95 : 5) ? this.#command(admin, { opcode: ADMIN.DELETE_SQ, dword10: id }) : []),
      ...(random.chance(isThere ? 95 : 5) ? this.#command(admin, { opcode: ADMIN.DELETE_CQ, dword10: id }) : []),
      ...this.#command(admin, { opcode: ADMIN.CREATE_CQ, prp1: queue.cq, dword10: size, dword11: (id << 16) | 3 }),
      ...this.#command(admin, { opcode: ADMIN.CREATE_SQ, prp1: queue.sq, dword10: size, dword11: (id << 16) | 1 }),
      ...this.#ring(admin),
    ];
  }

  #io(id: number): GuestOperation[] {
    const { random } = this.#source;
    const queue = this.#queues[id];
    if (queue === undefined) return id > 0 && this.#queues[0] !== undefined ? this.#createQueues(id) : [];
    const count = random.pick([1, 1, 2, 5]);
    return [...Array.from({ length: count }, () => this.#ioCommand(queue)).flat(), ...this.#ring(queue)];
  }

  #ioCommand(queue: Queue): GuestOperation[] {
    const { random } = this.#source;
    const opcode = random.pick([IO.READ, IO.READ, IO.READ, IO.WRITE, IO.WRITE, IO.WRITE, IO.FLUSH, IO.WRITE_ZEROES]);
    const blocks = random.pick([1, 1, 2, 8, 9, 16, 24, 64, 200]);
    const lba = random.below(DISK_BLOCKS - blocks + 1);
    const pages = Math.ceil((blocks * 512) / PAGE_SIZE) + 1;
    const { prp1, prp2, list } = this.#buffer(opcode === IO.WRITE_ZEROES ? 1 : pages);
    const fields = { opcode, nsid: NSID, prp1, prp2, dword10: lba, dword12: blocks - 1 };
    return [...list, ...this.#command(queue, fields)];
  }

  /** Where a command's data is: in pages of any kind, in their order or any other. */
  #buffer(pages: number): { prp1: bigint; prp2: bigint; list: GuestOperation[] } {
    const { random } = this.#source;
    const s = this.#source;
    const prp1 = s.address() & ~3n;
    if (pages <= 1) return { prp1, prp2: 0n, list: [] };
    if (pages === 2 || random.chance(10)) return { prp1, prp2: s.address() & ~0xfffn, list: [] };
    const first = s.pages(2);
    // From inside a page on, so that it has to be chained to the next.
    const entries = random.pick([512, 64, 3, 2, 1]);
    const at = first + PAGE_SIZE - entries * 8;
    const list = new Uint8Array(entries * 8 + PAGE_SIZE);
    const view = new DataView(list.buffer);
    for (let i = 0; i < list.byteLength / 8; i++) {
      // An entry that leads on, of which some lead back.
      const isLast = i === entries - 1;
      const right = isLast ? BigInt(random.pick([first + PAGE_SIZE, first + PAGE_SIZE, first])) : s.address() & ~0xfffn;
      view.setBigUint64(i * 8, s.twist(right, 64), true);
    }
    return { prp1, prp2: BigInt(at), list: [fill(at, list)] };
  }

  #admin(admin: Queue): GuestOperation[] {
    const { random } = this.#source;
    const data = { prp1: this.#source.address() & ~3n, prp2: this.#source.address() & ~0xfffn };
    const feature = random.pick([...Object.values(FEATURE), 0, 0x7f]);
    const fields = random.pick<() => Fields>([
      () => ({
        opcode: ADMIN.IDENTIFY,
        ...data,
        nsid: random.pick([0, 1, 2]),
        dword10: random.pick([...Object.values(CNS), 0x10]),
      }),
      () => ({
        opcode: ADMIN.GET_LOG_PAGE,
        ...data,
        dword10: (random.pick([15, 127, 1023]) << 16) | random.pick([...Object.values(LOG), 0x80]),
        dword12: random.pick([0, 0, 64, 512]),
      }),
      () => ({ opcode: ADMIN.SET_FEATURES, dword10: feature, dword11: random.pick([0, 1, 0xf000f, 0x10001]) }),
      () => ({ opcode: ADMIN.GET_FEATURES, dword10: feature, dword11: random.below(20) }),
      () => ({ opcode: ADMIN.ABORT, dword10: (random.below(this.#cid + 1) << 16) | random.pick([0, 0, 1]) }),
      () => ({ opcode: ADMIN.ASYNC_EVENT_REQUEST }),
      () => ({ opcode: ADMIN.DELETE_SQ, dword10: random.below(4) }),
      () => ({ opcode: ADMIN.DELETE_CQ, dword10: random.below(4) }),
      () => ({ opcode: random.below(256) }),
    ])();
    return [...this.#command(admin, fields), ...this.#ring(admin)];
  }

  /** Takes what was posted, as long as its phase is right, and rings the doorbell. */
  #take(id: number): GuestOperation[] {
    const queue = this.#queues[id];
    if (queue === undefined) return [];
    for (let taken = 0; taken < queue.entries; taken++) {
      const at = queue.cq + queue.head * CQE_BYTES;
      if ((this.#source.peek(at + 14, 1)[0] & 1) !== queue.phase) break;
      queue.head = (queue.head + 1) % queue.entries;
      if (queue.head === 0) queue.phase ^= 1;
    }
    return [bar0(DOORBELLS + id * 8 + 4, this.#source.u32(queue.head))];
  }

  #doorbell(): GuestOperation[] {
    const { random } = this.#source;
    return [bar0(DOORBELLS + 4 * random.below(40), this.#source.u32(random.below(70)))];
  }

  #reset(): GuestOperation[] {
    const { random } = this.#source;
    this.forget();
    return random.pick<() => GuestOperation[]>([
      () => [bar0(REGISTER.CC, this.#source.u32(0))],
      () => [bar0(REGISTER.NSSR, this.#source.u32(NSSR_RESET))],
      () => [bar0(REGISTER.CC, this.#source.u32(CC.EN | (random.between(1, 3) << 14)))],
      () => [bar0(REGISTER.CC, this.#source.u32(random.between(1, 3) << 14))],
      () => [write(REGION.CONFIG, 0x68, this.#source.u32(0x8000))],
    ])();
  }

  #command(queue: Queue, fields: Fields): GuestOperation[] {
    const s = this.#source;
    const entry = new Uint8Array(SQE_BYTES);
    const view = new DataView(entry.buffer);
    this.#cid = (this.#cid + 1) & 0xffff;
    view.setUint32(0, Number(s.twist(fields.opcode, 16)) | (this.#cid << 16), true);
    view.setUint32(4, Number(s.twist(fields.nsid ?? 0, 32)), true);
    view.setBigUint64(24, s.twist(fields.prp1 ?? 0, 64), true);
    view.setBigUint64(32, s.twist(fields.prp2 ?? 0, 64), true);
    view.setUint32(40, Number(s.twist(fields.dword10 ?? 0, 32)), true);
    view.setUint32(44, Number(s.twist(fields.dword11 ?? 0, 32)), true);
    view.setUint32(48, Number(s.twist(fields.dword12 ?? 0, 32)), true);
    view.setUint32(52, Number(s.twist(0, 32)), true);
    const at = queue.sq + queue.tail * SQE_BYTES;
    queue.tail = (queue.tail + 1) % queue.entries;
    return [fill(at, entry)];
  }

  #ring(queue: Queue): GuestOperation[] {
    return [bar0(DOORBELLS + queue.id * 8, this.#source.u32(queue.tail))];
  }

  #makeQueue(id: number, entries: number): Queue {
    const sq = this.#source.queue(entries * SQE_BYTES);
    // Sometimes both in the same place.
    const cq = this.#source.random.chance(3) ? sq : this.#source.queue(entries * CQE_BYTES);
    return { id, sq, cq, entries, tail: 0, head: 0, phase: 1 };
  }
}

interface Fields {
  readonly opcode: number;
  readonly nsid?: number;
  readonly prp1?: bigint | number;
  readonly prp2?: bigint | number;
  readonly dword10?: number;
  readonly dword11?: number;
  readonly dword12?: number;
}
