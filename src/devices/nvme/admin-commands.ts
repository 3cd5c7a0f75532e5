import type { DmaPort } from "../model.js";
import type { AsyncEvents } from "./async-events.js";
import type { Commands } from "./command.js";
import type { Features } from "./features.js";
import { type DiskIdentity, IDENTIFY_BYTES, identify } from "./identity.js";
import { MAX_QUEUE_ENTRIES, MAX_TRANSFER_BYTES } from "./limits.js";
import type { Logs } from "./logs.js";
import { Queues } from "./queues.js";
import { ADMIN, CC, CNS, CQE_SHIFT, NSID, NSID_ALL, SQE_SHIFT, STATUS } from "./spec.js";
import { pageOf, type Transfer } from "./transfer.js";

/** The answer to a command that has none yet: an Asynchronous Event Request waits for its event. */
export const HELD = -1;

/** Physically Contiguous, in Create I/O Queue's dword 11: CAP.CQR says that queues have to be. */
const CONTIGUOUS = 1 << 0;
const INTERRUPTS_ENABLED = 1 << 1;

/** Get Log Page, dword 10: events stay held back. */
const RETAIN_ASYNC_EVENT = 1 << 15;

/** What admin commands work on. */
export interface AdminParts {
  readonly queues: Queues;
  readonly events: AsyncEvents;
  readonly features: Features;
  readonly logs: Logs;
  readonly transfer: Transfer;
  readonly identity: () => DiskIdentity;
  /** How many there are for completion queues. */
  readonly vectors: number;
  /** The register CC, which says how large entries are. */
  readonly configuration: () => number;
  /** Completes a request for an event that was aborted; false where its completion has no room. */
  readonly completeAborted: (cid: number) => boolean;
}

/** The admin command set (5), done at once. */
export class AdminCommands {
  /** Dword 0 of the completion. */
  result = 0;
  readonly #parts: AdminParts;

  constructor(parts: AdminParts) {
    this.#parts = parts;
  }

  /** Does the command that `commands` looks at; returns its status, or {@link HELD}. */
  execute(commands: Commands, dma: DmaPort): number {
    this.result = 0;
    const { opcode } = commands;
    if (commands.flags !== 0) return STATUS.INVALID_FIELD;
    switch (opcode) {
      case ADMIN.IDENTIFY:
        return this.#identify(commands, dma);
      case ADMIN.CREATE_CQ:
        return this.#createCompletion(commands);
      case ADMIN.CREATE_SQ:
        return this.#createSubmission(commands);
      case ADMIN.DELETE_CQ:
        return this.#deleteCompletion(commands.dword(10) & 0xffff);
      case ADMIN.DELETE_SQ:
        return this.#deleteSubmission(commands.dword(10) & 0xffff);
      case ADMIN.SET_FEATURES: {
        const { status, value } = this.#parts.features.set(
          commands.dword(10),
          commands.dword(11),
          this.#parts.queues.haveIo,
        );
        this.result = value;
        return status;
      }
      case ADMIN.GET_FEATURES: {
        const { status, value } = this.#parts.features.get(commands.dword(10), commands.dword(11));
        this.result = value;
        return status;
      }
      case ADMIN.GET_LOG_PAGE:
        return this.#logPage(commands, dma);
      case ADMIN.ABORT:
        return this.#abort(commands.dword(10));
      case ADMIN.ASYNC_EVENT_REQUEST:
        return this.#parts.events.request(commands.cid) ? HELD : STATUS.ASYNC_EVENT_LIMIT;
      default:
        return STATUS.INVALID_OPCODE;
    }
  }

  #identify(commands: Commands, dma: DmaPort): number {
    const cns = commands.dword(10) & 0xff;
    const { nsid } = commands;
    const ofNamespace = cns === CNS.NAMESPACE || cns === CNS.NAMESPACE_DESCRIPTORS;
    if (ofNamespace && nsid !== NSID) return STATUS.INVALID_NAMESPACE;
    if (cns === CNS.ACTIVE_NAMESPACES && nsid >= NSID_ALL - 1) return STATUS.INVALID_NAMESPACE;
    const data = identify(cns, nsid, this.#parts.identity());
    if (data === null) return STATUS.INVALID_FIELD;
    return this.#send(commands, data, 0, IDENTIFY_BYTES, dma);
  }

  #createCompletion(commands: Commands): number {
    const { queues, configuration, vectors } = this.#parts;
    const id = commands.dword(10) & 0xffff;
    const entries = (commands.dword(10) >>> 16) + 1;
    const flags = commands.dword(11) & 0xffff;
    const vector = commands.dword(11) >>> 16;
    if (!Queues.isIo(id) || queues.completion[id] !== undefined) return STATUS.INVALID_QUEUE_IDENTIFIER;
    if (entries < 2 || entries > MAX_QUEUE_ENTRIES) return STATUS.INVALID_QUEUE_SIZE;
    if ((configuration() >>> CC.IOCQES_SHIFT) % 16 !== CQE_SHIFT) return STATUS.INVALID_QUEUE_SIZE;
    if ((flags & CONTIGUOUS) === 0) return STATUS.INVALID_FIELD;
    if (vector >= vectors) return STATUS.INVALID_INTERRUPT_VECTOR;
    if (commands.dword(6) % 4096 !== 0) return STATUS.INVALID_PRP_OFFSET;
    const page = pageOf(commands.dword(6), commands.dword(7));
    queues.addCompletion({ id, page, entries, vector, interrupts: (flags & INTERRUPTS_ENABLED) !== 0 });
    return STATUS.SUCCESS;
  }

  #createSubmission(commands: Commands): number {
    const { queues, configuration } = this.#parts;
    const id = commands.dword(10) & 0xffff;
    const entries = (commands.dword(10) >>> 16) + 1;
    const completion = commands.dword(11) >>> 16;
    if (!Queues.isIo(id) || queues.submission[id] !== undefined) return STATUS.INVALID_QUEUE_IDENTIFIER;
    if (entries < 2 || entries > MAX_QUEUE_ENTRIES) return STATUS.INVALID_QUEUE_SIZE;
    if ((configuration() >>> CC.IOSQES_SHIFT) % 16 !== SQE_SHIFT) return STATUS.INVALID_QUEUE_SIZE;
    if ((commands.dword(11) & CONTIGUOUS) === 0) return STATUS.INVALID_FIELD;
    if (!Queues.isIo(completion)) return STATUS.INVALID_QUEUE_IDENTIFIER;
    const target = queues.completion[completion];
    if (target === undefined) return STATUS.COMPLETION_QUEUE_INVALID;
    if (commands.dword(6) % 4096 !== 0) return STATUS.INVALID_PRP_OFFSET;
    queues.addSubmission({ id, page: pageOf(commands.dword(6), commands.dword(7)), entries, completion: target });
    return STATUS.SUCCESS;
  }

  /** Commands that it still holds are not fetched any more: the host counts them as aborted (5.6). */
  #deleteSubmission(id: number): number {
    const { queues } = this.#parts;
    if (!Queues.isIo(id) || queues.submission[id] === undefined) return STATUS.INVALID_QUEUE_IDENTIFIER;
    queues.submission[id] = undefined;
    return STATUS.SUCCESS;
  }

  #deleteCompletion(id: number): number {
    const { queues } = this.#parts;
    if (!Queues.isIo(id) || queues.completion[id] === undefined) return STATUS.INVALID_QUEUE_IDENTIFIER;
    if (queues.submission.some((queue) => queue?.completion.id === id)) return STATUS.INVALID_QUEUE_DELETION;
    queues.completion[id] = undefined;
    return STATUS.SUCCESS;
  }

  #logPage(commands: Commands, dma: DmaPort): number {
    const { logs, events } = this.#parts;
    const id = commands.dword(10) & 0xff;
    const dwords = (commands.dword(11) & 0xffff) * 0x1_0000 + (commands.dword(10) >>> 16) + 1;
    const offset = commands.dword(13) * 2 ** 32 + commands.dword(12);
    const page = logs.page(id);
    if (page === null) return STATUS.INVALID_LOG_PAGE;
    if (offset % 4 !== 0 || offset > page.byteLength || dwords * 4 > MAX_TRANSFER_BYTES) return STATUS.INVALID_FIELD;
    const status = this.#send(commands, page, offset, dwords * 4, dma);
    if (status === STATUS.SUCCESS && (commands.dword(10) & RETAIN_ASYNC_EVENT) === 0) events.logWasRead(id);
    return status;
  }

  /** Every command but a request for events is done before one that aborts it is read: too late. */
  #abort(dword10: number): number {
    const isAborted = (dword10 & 0xffff) === 0 && this.#parts.completeAborted(dword10 >>> 16);
    this.result = isAborted ? 0 : 1;
    return STATUS.SUCCESS;
  }

  /** Sends part of some data; zeroes stand for what lies behind its end. */
  #send(commands: Commands, data: Uint8Array, offset: number, bytes: number, dma: DmaPort): number {
    const { transfer } = this.#parts;
    const status = transfer.describe(commands, bytes, dma);
    if (status !== STATUS.SUCCESS) return status;
    transfer.buffer.fill(0, 0, bytes);
    transfer.buffer.set(data.subarray(offset, offset + bytes));
    return transfer.toGuest(bytes, dma);
  }
}
