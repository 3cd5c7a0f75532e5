import { PAGE_SHIFT, PAGE_SIZE } from "../../memory/address.js";
import { struct } from "../../uapi/struct.js";
import { VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import type { DeviceContext } from "../model.js";
import { badState } from "../records.js";
import { AdminCommands, HELD } from "./admin-commands.js";
import { AsyncEvents, DOORBELL_ERROR } from "./async-events.js";
import { Commands } from "./command.js";
import type { Disk } from "./disk.js";
import { Features } from "./features.js";
import type { DiskIdentity } from "./identity.js";
import { IoCommands, lbaOf } from "./io-commands.js";
import { DOORBELLS_END, MAX_QUEUE_ENTRIES } from "./limits.js";
import { Logs } from "./logs.js";
import { type CompletionQueue, Queues, room, type SubmissionQueue, waiting } from "./queues.js";
import {
  CC,
  CQE_BYTES,
  CQE_SHIFT,
  CSTS,
  DOORBELLS,
  NSSR_RESET,
  REGISTER,
  REGISTERS_BYTES,
  SQE_BYTES,
  SQE_SHIFT,
  STATUS,
  VERSION,
} from "./spec.js";
import { pageOf, Transfer } from "./transfer.js";

/** CAP (3.1.1): queues must be contiguous (CQR), a reset takes 500 ms at most (TO), NSSR is there, the NVM command set. */
const CAP_LOW = (MAX_QUEUE_ENTRIES - 1) | (1 << 16) | (1 << 24);
const CAP_HIGH = (1 << 4) | (1 << 5);

/** AQA: the sizes of submission and completion queue, 0's based. */
const AQA_WRITEABLE = 0x0fff_0fff;
const ADDRESS_WRITEABLE = 0xffff_f000;

/** Commands of a queue before the others have their turn. */
const BATCH = 32;

/** With nothing to do, until a doorbell is rung. */
const IDLE_MS = 1000;

/** The registers, as they lie in the state. */
const savedRegisters = struct("saved_registers", {
  intms: "u32",
  cc: "u32",
  csts: "u32",
  aqa: "u32",
  asqLow: "u32",
  asqHigh: "u32",
  acqLow: "u32",
  acqHigh: "u32",
});

export const REGISTERS_STATE_BYTES = savedRegisters.size;

/**
 * The controller: registers, doorbells, and the work on queues.
 *
 * A command is fetched only when its completion has room, and then done and completed before anything else happens, in one
 * slice of work: between slices no command is fetched and not completed (but requests for events). So what is saved is
 * where the queues stand, and the commands behind their heads are another device's to fetch.
 */
export class Controller {
  readonly queues = new Queues();
  readonly events = new AsyncEvents();
  readonly features = new Features();
  readonly logs = new Logs();
  commands = 0;
  errors = 0;
  interrupts = 0;
  readonly #disk: Disk;
  readonly #admin: AdminCommands;
  readonly #io: IoCommands;
  readonly #fetched = new Commands();
  readonly #entry = new Uint8Array(CQE_BYTES);
  readonly #entryDwords = new Uint32Array(this.#entry.buffer);
  #context: DeviceContext | undefined;
  #intms = 0;
  #cc = 0;
  /** The CC that is in effect: behind {@link #cc} while a command is being done. */
  #applied = 0;
  /** It was disabled, or is to be reset as a whole: happens once no command is being done. */
  #disabled = false;
  #resetDue: "function" | "subsystem" | undefined;
  #working = false;
  /** The queue whose turn it is. */
  #turn = 0;
  #csts = 0;
  #aqa = 0;
  #asq = { low: 0, high: 0 };
  #acq = { low: 0, high: 0 };

  constructor(disk: Disk, identity: () => DiskIdentity) {
    this.#disk = disk;
    const { queues, events, features, logs } = this;
    const transfer = new Transfer();
    this.#io = new IoCommands({ disk, transfer, features, logs });
    this.#admin = new AdminCommands({
      queues,
      events,
      features,
      logs,
      transfer,
      identity,
      configuration: () => this.#cc,
      completeAborted: (cid) => this.#completeAborted(cid),
    });
  }

  start(context: DeviceContext): void {
    this.#context = context;
  }

  /** Commands are fetched: it is ready, not shut down, and has not failed. */
  get isReady(): boolean {
    return (this.#csts & (CSTS.RDY | CSTS.CFS | CSTS.SHST)) === CSTS.RDY;
  }

  /** Controller Fatal Status (3.1.6): a reset leads out of it. */
  get hasFailed(): boolean {
    return (this.#csts & CSTS.CFS) !== 0;
  }

  /** See DeviceModel.showFailure. */
  showFailure(): void {
    this.#csts |= CSTS.CFS;
    if (!this.#working) this.#apply();
  }

  /** See DeviceModel.run. */
  run(budgetMs: number): number {
    const until = performance.now() + budgetMs;
    while (this.isReady) {
      const worked = this.#work(until);
      this.#apply();
      if (!worked) return IDLE_MS;
      if (performance.now() >= until) return 0;
    }
    return IDLE_MS;
  }

  /** One round over the queues, or as much of it as time is left for; false where there was nothing to do. */
  #work(until: number): boolean {
    this.#working = true;
    try {
      const { submission } = this.queues;
      let worked = this.#tellEvents();
      for (let looks = 0; looks < submission.length && this.isReady && !this.#resetWaits; looks++) {
        const queue = submission[this.#turn];
        this.#turn = (this.#turn + 1) % submission.length;
        if (queue === undefined || !this.#serve(queue, until)) continue;
        worked = true;
        if (performance.now() >= until) break;
      }
      this.#announce();
      return worked;
    } finally {
      this.#working = false;
    }
  }

  /** The device stops: what it does next depends on its state alone, here and elsewhere. */
  quiesce(): void {
    this.#turn = 0;
  }

  /** Registers and doorbells; a doorbell reads as 0. */
  read(offset: number, target: Uint8Array): void {
    const registers = new Uint8Array(REGISTERS_BYTES);
    const view = new DataView(registers.buffer);
    view.setUint32(REGISTER.CAP, CAP_LOW, true);
    view.setUint32(REGISTER.CAP + 4, CAP_HIGH, true);
    view.setUint32(REGISTER.VS, VERSION, true);
    view.setUint32(REGISTER.INTMS, this.#intms, true);
    view.setUint32(REGISTER.INTMC, this.#intms, true);
    view.setUint32(REGISTER.CC, this.#cc, true);
    view.setUint32(REGISTER.CSTS, this.#csts, true);
    view.setUint32(REGISTER.AQA, this.#aqa, true);
    view.setUint32(REGISTER.ASQ, this.#asq.low, true);
    view.setUint32(REGISTER.ASQ + 4, this.#asq.high, true);
    view.setUint32(REGISTER.ACQ, this.#acq.low, true);
    view.setUint32(REGISTER.ACQ + 4, this.#acq.high, true);
    target.fill(0);
    target.set(registers.subarray(offset, offset + target.byteLength));
  }

  /** A register's write: 4 or 8 bytes, aligned to 4 (3.1). Others do nothing. */
  write(offset: number, source: Uint8Array): void {
    if (offset % 4 !== 0 || (source.byteLength !== 4 && source.byteLength !== 8)) return;
    const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
    for (let at = 0; at < source.byteLength; at += 4) this.#writeDword(offset + at, view.getUint32(at, true));
  }

  /** A reset of the function: registers too, but not what the disk has done. */
  reset(): void {
    this.#resetDue = "function";
    if (!this.#working) this.#apply();
  }

  saveRegisters(): Uint8Array {
    return savedRegisters.encode({
      intms: this.#intms,
      cc: this.#cc,
      csts: this.#csts,
      aqa: this.#aqa,
      asqLow: this.#asq.low,
      asqHigh: this.#asq.high,
      acqLow: this.#acq.low,
      acqHigh: this.#acq.high,
    });
  }

  /** After the queues were loaded. @throws DirtmapError `BAD_DEVICE_STATE` */
  loadRegisters(data: Uint8Array): void {
    const saved = savedRegisters.decode(data);
    const isReady = (saved.csts & CSTS.RDY) !== 0;
    const hasAdmin = this.queues.submission[0] !== undefined && this.queues.completion[0] !== undefined;
    if (isReady !== hasAdmin) throw badState("it is ready without admin queues, or has some without being ready");
    this.#intms = saved.intms;
    this.#cc = saved.cc;
    this.#applied = saved.cc;
    this.#csts = saved.csts;
    this.#aqa = saved.aqa;
    this.#asq = { low: saved.asqLow, high: saved.asqHigh };
    this.#acq = { low: saved.acqLow, high: saved.acqHigh };
  }

  /** No further command is to be done before a reset. */
  get #resetWaits(): boolean {
    return this.#disabled || this.#resetDue !== undefined;
  }

  get #host(): DeviceContext {
    if (this.#context === undefined) throw new Error("an NVMe controller that works before its start");
    return this.#context;
  }

  #writeDword(offset: number, value: number): void {
    if (offset >= DOORBELLS) {
      if (offset < DOORBELLS_END) this.#ring((offset - DOORBELLS) >> 3, (offset & 4) === 0, value & 0xffff);
      else if (this.isReady) this.events.doorbellError(DOORBELL_ERROR.INVALID_REGISTER);
      return;
    }
    switch (offset) {
      // Of no effect with MSI-X, where they are not to be used.
      case REGISTER.INTMS:
        this.#intms = (this.#intms | value) >>> 0;
        return;
      case REGISTER.INTMC:
        this.#intms = (this.#intms & ~value) >>> 0;
        return;
      case REGISTER.CC:
        this.#configure(value & CC.WRITEABLE);
        return;
      case REGISTER.CSTS:
        if ((value & CSTS.NSSRO) !== 0) this.#csts &= ~CSTS.NSSRO;
        return;
      case REGISTER.NSSR:
        if (value === NSSR_RESET) this.#resetDue = "subsystem";
        if (!this.#working) this.#apply();
        return;
      case REGISTER.AQA:
        this.#aqa = value & AQA_WRITEABLE;
        return;
      case REGISTER.ASQ:
        this.#asq.low = (value & ADDRESS_WRITEABLE) >>> 0;
        return;
      case REGISTER.ASQ + 4:
        this.#asq.high = value;
        return;
      case REGISTER.ACQ:
        this.#acq.low = (value & ADDRESS_WRITEABLE) >>> 0;
        return;
      case REGISTER.ACQ + 4:
        this.#acq.high = value;
        return;
    }
  }

  #configure(value: number): void {
    this.#cc = value;
    if ((value & CC.EN) === 0) this.#disabled = true;
    if (!this.#working) this.#apply();
  }

  /** What was written to CC and NSSR takes effect. */
  #apply(): void {
    if (this.#resetDue !== undefined) {
      this.#resetController();
      this.#csts = this.#resetDue === "subsystem" ? CSTS.NSSRO : 0;
      this.#resetDue = undefined;
      this.#disabled = false;
      this.#cc = 0;
      this.#applied = 0;
      this.#intms = 0;
      this.#aqa = 0;
      this.#asq = { low: 0, high: 0 };
      this.#acq = { low: 0, high: 0 };
    }
    const before = this.#disabled ? this.#applied & ~CC.EN : this.#applied;
    if (this.#disabled && (this.#applied & CC.EN) !== 0) this.#resetController();
    // It may have failed, or been shut down, while it was disabled.
    if (this.#disabled) this.#csts &= ~CSTS.CFS;
    this.#disabled = false;
    this.#applied = this.#cc;
    if ((this.#cc & CC.EN) !== 0 && (before & CC.EN) === 0) this.#enable();
    if ((this.#cc & CC.SHN) !== 0 && (before & CC.SHN) === 0) {
      this.#host.dma.settle?.();
      this.#disk.flush();
      this.#csts = (this.#csts & ~CSTS.SHST) | CSTS.SHST_COMPLETE;
    }
  }

  /** What can't be configured is a fatal error, from which a reset leads. */
  #enable(): void {
    this.#csts &= CSTS.NSSRO;
    const entries = (shift: number) => ((this.#aqa >>> shift) & 0xfff) + 1;
    if ((this.#cc & (CC.CSS | CC.MPS | CC.AMS)) !== 0 || entries(0) < 2 || entries(16) < 2) {
      this.#csts |= CSTS.CFS;
      return;
    }
    const completion = this.queues.addCompletion({
      id: 0,
      page: pageOf(this.#acq.low, this.#acq.high),
      entries: entries(16),
      vector: 0,
      interrupts: true,
    });
    this.queues.addSubmission({
      id: 0,
      page: pageOf(this.#asq.low, this.#asq.high),
      entries: entries(0),
      completion,
    });
    this.#csts |= CSTS.RDY;
  }

  /** A controller reset (7.3.2): the registers of the admin queues stay. */
  #resetController(): void {
    // A guest that sees the reset may use the memory of its commands for something else.
    this.#host.dma.settle?.();
    this.queues.clear();
    this.events.reset();
    this.features.reset();
    this.logs.reset();
    this.#csts &= CSTS.NSSRO;
  }

  #ring(id: number, isTail: boolean, value: number): void {
    if (!this.isReady) return;
    const queue = isTail ? this.queues.submission[id] : this.queues.completion[id];
    if (queue === undefined) this.events.doorbellError(DOORBELL_ERROR.INVALID_REGISTER);
    else if (value >= queue.entries || (!isTail && !isBehind(queue as CompletionQueue, value))) {
      this.events.doorbellError(DOORBELL_ERROR.INVALID_VALUE);
    } else if (isTail) queue.tail = value;
    else queue.head = value;
  }

  /** Does some of a queue's commands; false where there are none, or no room for their completions. */
  #serve(queue: SubmissionQueue, until: number): boolean {
    const { head, page, entries, completion } = queue;
    const at = head << SQE_SHIFT;
    const offset = at % PAGE_SIZE;
    const count = Math.min(
      waiting(queue),
      BATCH,
      entries - head,
      (PAGE_SIZE - offset) >> SQE_SHIFT,
      // Of the admin queue, an Abort may complete two.
      queue.id === 0 ? Math.floor(room(completion) / 2) || Math.min(1, room(completion)) : room(completion),
    );
    if (count === 0) return false;
    const { dma } = this.#host;
    if (dma.read(page + (at >> PAGE_SHIFT), offset, this.#fetched.bytes, 0, count * SQE_BYTES) !== null) {
      this.#csts |= CSTS.CFS;
      return false;
    }
    for (let i = 0; i < count; i++) {
      this.#fetched.select(i);
      queue.head = (queue.head + 1) % entries;
      this.commands++;
      if (queue.id === 0) {
        const status = this.#admin.execute(this.#fetched, dma);
        if (status !== HELD) this.#complete(queue, this.#fetched.cid, status, this.#admin.result);
      } else this.#complete(queue, this.#fetched.cid, this.#io.execute(this.#fetched, dma), 0);
      // A command may take a while: 512 KiB of a slow disk, or of a client that is asked for every page.
      if (!this.isReady || this.#resetWaits || performance.now() >= until) break;
    }
    return true;
  }

  #complete(queue: SubmissionQueue, cid: number, status: number, result: number): void {
    if (status !== STATUS.SUCCESS && status !== STATUS.ABORT_REQUESTED) {
      this.errors++;
      const { phase } = queue.completion;
      const lba = queue.id === 0 ? 0n : lbaOf(this.#fetched);
      this.logs.addError({ queue: queue.id, cid, status, phase, lba, nsid: this.#fetched.nsid });
    }
    this.#post(queue, cid, status, result);
  }

  /**
   * Puts an entry into the completion queue (4.6). Its phase tag is in the half that is written last: a guest that sees the
   * tag sees the rest.
   */
  #post(queue: SubmissionQueue, cid: number, status: number, result: number): void {
    const { completion } = queue;
    this.#entryDwords[0] = result;
    this.#entryDwords[2] = queue.head | (queue.id << 16);
    this.#entryDwords[3] = cid | (completion.phase << 16) | (status << 17);
    const { dma } = this.#host;
    const at = completion.tail << CQE_SHIFT;
    const page = completion.page + (at >> PAGE_SHIFT);
    const offset = at % PAGE_SIZE;
    if (
      dma.write(page, offset, this.#entry, 0, 8) !== null ||
      dma.write(page, offset + 8, this.#entry, 8, 8) !== null
    ) {
      this.#csts |= CSTS.CFS;
      return;
    }
    completion.tail = (completion.tail + 1) % completion.entries;
    if (completion.tail === 0) completion.phase ^= 1;
    completion.unannounced = true;
  }

  #tellEvents(): boolean {
    const admin = this.queues.submission[0];
    if (admin === undefined || !this.events.isDue || room(admin.completion) === 0) return false;
    const event = this.events.next();
    if (event === undefined) return false;
    this.#post(admin, event.cid, STATUS.SUCCESS, event.result);
    return true;
  }

  #completeAborted(cid: number): boolean {
    const admin = this.queues.submission[0];
    // The Abort's own completion needs room, too.
    if (admin === undefined || room(admin.completion) < 2 || !this.events.withdraw(cid)) return false;
    this.#post(admin, cid, STATUS.ABORT_REQUESTED, 0);
    return true;
  }

  /** One interrupt per completion queue tells of all that was posted since the last. */
  #announce(): void {
    for (const queue of this.queues.completion) {
      if (queue === undefined || !queue.unannounced) continue;
      queue.unannounced = false;
      if (!queue.interrupts) continue;
      this.interrupts++;
      this.#host.raiseIrq(VFIO_PCI_IRQ_INDEX.MSIX, queue.vector);
    }
  }
}

/** True for a head that takes no more than was posted. */
function isBehind({ head, tail, entries }: CompletionQueue, value: number): boolean {
  return (value - head + entries) % entries <= (tail - head + entries) % entries;
}
