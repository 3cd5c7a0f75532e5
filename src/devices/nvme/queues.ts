import type { PageNumber } from "../../memory/address.js";
import { struct } from "../../uapi/struct.js";
import { badState } from "../records.js";
import { MAX_IO_QUEUES, MAX_QUEUE_ENTRIES, VECTORS } from "./limits.js";

/*
 * Queues lie in guest memory, from the beginning of a page on, in one piece. Who puts in owns the tail, who takes out the
 * head; a queue is empty where they are equal, and full with one entry less than it has (4.1.1, 4.1.2).
 */

export interface SubmissionQueue {
  readonly id: number;
  readonly page: PageNumber;
  readonly entries: number;
  readonly completion: CompletionQueue;
  head: number;
  tail: number;
}

export interface CompletionQueue {
  readonly id: number;
  readonly page: PageNumber;
  readonly entries: number;
  readonly vector: number;
  readonly interrupts: boolean;
  head: number;
  tail: number;
  /** The phase tag of entries that are written now: 1 in the first pass, then 0, and so on. */
  phase: number;
  /** There are entries of which no interrupt has told the guest. */
  unannounced: boolean;
}

/** Commands that wait to be fetched. */
export function waiting({ head, tail, entries }: SubmissionQueue): number {
  return (tail - head + entries) % entries;
}

/** Completions that can be posted before the guest takes some. */
export function room({ head, tail, entries }: CompletionQueue): number {
  return (head - tail - 1 + entries) % entries;
}

const QUEUES = MAX_IO_QUEUES + 1;

/** An admin queue may be longer than those that CAP.MQES allows for I/O (3.1.8). */
const MAX_ADMIN_ENTRIES = 4096;

/** As it lies in the state; with 0 entries there is none. */
const savedQueue = struct("saved_queue", {
  page: "u64",
  entries: "u16",
  head: "u16",
  tail: "u16",
  /** Of a completion queue: its vector, the phase tag, and whether it interrupts. */
  vector: "u16",
  phase: "u16",
  interrupts: "u16",
  /** Of a submission queue: where its completions go. */
  completion: "u16",
});

export const QUEUES_BYTES = 2 * QUEUES * savedQueue.size;

/** The queues that there are, by their identifiers; 0 are the admin queues. */
export class Queues {
  readonly submission: (SubmissionQueue | undefined)[] = new Array(QUEUES).fill(undefined);
  readonly completion: (CompletionQueue | undefined)[] = new Array(QUEUES).fill(undefined);

  /** True for an identifier that an I/O queue can have. */
  static isIo(id: number): boolean {
    return id >= 1 && id <= MAX_IO_QUEUES;
  }

  /** There are I/O queues. */
  get haveIo(): boolean {
    return this.completion.some((queue) => queue !== undefined && queue.id > 0);
  }

  addCompletion(queue: Pick<CompletionQueue, "id" | "page" | "entries" | "vector" | "interrupts">): CompletionQueue {
    const added = { ...queue, head: 0, tail: 0, phase: 1, unannounced: false };
    this.completion[queue.id] = added;
    return added;
  }

  addSubmission(queue: Pick<SubmissionQueue, "id" | "page" | "entries" | "completion">): void {
    this.submission[queue.id] = { ...queue, head: 0, tail: 0 };
  }

  clear(): void {
    this.submission.fill(undefined);
    this.completion.fill(undefined);
  }

  save(): Uint8Array {
    const data = new Uint8Array(QUEUES_BYTES);
    for (let id = 0; id < QUEUES; id++) {
      const completion = this.completion[id];
      if (completion !== undefined) {
        const { page, entries, head, tail, vector, phase, interrupts } = completion;
        savedQueue.encode(
          { page: BigInt(page), entries, head, tail, vector, phase, interrupts: interrupts ? 1 : 0 },
          data,
          id * savedQueue.size,
        );
      }
      const submission = this.submission[id];
      if (submission !== undefined) {
        const { page, entries, head, tail } = submission;
        savedQueue.encode(
          { page: BigInt(page), entries, head, tail, completion: submission.completion.id },
          data,
          (QUEUES + id) * savedQueue.size,
        );
      }
    }
    return data;
  }

  /** @param data QUEUES_BYTES. @throws DirtmapError `BAD_DEVICE_STATE` for queues that can't be */
  load(data: Uint8Array): void {
    this.clear();
    for (let id = 0; id < QUEUES; id++) {
      const saved = savedQueue.decode(data, id * savedQueue.size);
      if (saved.entries === 0) continue;
      check(id, saved);
      if (saved.vector >= VECTORS || saved.phase > 1) throw badState(`its completion queue ${id} can't be`);
      this.completion[id] = {
        id,
        page: Number(saved.page),
        entries: saved.entries,
        vector: saved.vector,
        interrupts: saved.interrupts !== 0,
        head: saved.head,
        tail: saved.tail,
        phase: saved.phase,
        // An interrupt may have been lost on the way: one too many does no harm.
        unannounced: saved.head !== saved.tail,
      };
    }
    for (let id = 0; id < QUEUES; id++) {
      const saved = savedQueue.decode(data, (QUEUES + id) * savedQueue.size);
      if (saved.entries === 0) continue;
      check(id, saved);
      const completion = this.completion[saved.completion];
      if (completion === undefined || (saved.completion === 0) !== (id === 0)) {
        throw badState(`its submission queue ${id} has no completion queue`);
      }
      const { entries, head, tail } = saved;
      this.submission[id] = { id, page: Number(saved.page), entries, completion, head, tail };
    }
  }
}

function check(id: number, { page, entries, head, tail }: ReturnType<typeof savedQueue.decode>): void {
  const most = id === 0 ? MAX_ADMIN_ENTRIES : MAX_QUEUE_ENTRIES;
  if (entries < 2 || entries > most || head >= entries || tail >= entries || page >= 1n << 52n) {
    throw badState(`its queue ${id} can't be: ${entries} entries, from ${head} to ${tail}`);
  }
}
