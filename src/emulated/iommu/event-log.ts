import type { DmaFault } from "../../devices/model.js";
import type { PageNumber } from "../../memory/address.js";

/*
 * The IOMMU's event log: a ring in shared memory to which device threads append the faults that they ran into, and that
 * the main thread empties. As in hardware, an event that finds the ring full is dropped, and the overflow is noted.
 */

/** A DMA that was blocked. */
export interface IommuFault {
  readonly port: number;
  readonly page: PageNumber;
  readonly write: boolean;
  readonly reason: DmaFault;
}

const REASONS = ["not-mapped", "not-writeable", "not-readable", "p2p-refused", "detached", "not-pinned"] as const;
REASONS satisfies readonly DmaFault[];

/** Words of the header: tail (next ticket), head (next to be read), events dropped. */
const TAIL = 0;
const HEAD = 1;
const DROPPED = 2;
const HEADER_WORDS = 16;
/** Words of an entry: its ticket + 1 once it is complete, port, page (low 32 bits, rest), reason and direction. */
const ENTRY_WORDS = 8;
const WRITE_FLAG = 1 << 8;

export class EventLog {
  /** Post them, and wrap them again on the other thread. */
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly #capacity: number;

  constructor(words: Int32Array<SharedArrayBuffer>) {
    this.words = words;
    this.#capacity = (words.length - HEADER_WORDS) / ENTRY_WORDS;
  }

  /** @param capacity events, a power of two */
  static allocate(capacity: number): EventLog {
    return new EventLog(new Int32Array(new SharedArrayBuffer((HEADER_WORDS + capacity * ENTRY_WORDS) * 4)));
  }

  /** Device's side; any number of threads. */
  append(port: number, page: PageNumber, write: boolean, reason: DmaFault): void {
    const { words } = this;
    let ticket = Atomics.load(words, TAIL);
    for (;;) {
      if (((ticket - Atomics.load(words, HEAD)) | 0) >= this.#capacity) {
        Atomics.add(words, DROPPED, 1);
        return;
      }
      // Each failure means that another thread has appended.
      const found = Atomics.compareExchange(words, TAIL, ticket, (ticket + 1) | 0);
      if (found === ticket) break;
      ticket = found;
    }
    const at = this.#at(ticket);
    words[at + 1] = port;
    words[at + 2] = page % 2 ** 32;
    words[at + 3] = Math.floor(page / 2 ** 32);
    words[at + 4] = REASONS.indexOf(reason) | (write ? WRITE_FLAG : 0);
    Atomics.store(words, at, (ticket + 1) | 0);
  }

  /** Reader's side, on one thread: takes the events out, oldest first. */
  take(): IommuFault[] {
    const { words } = this;
    const faults: IommuFault[] = [];
    for (let head = Atomics.load(words, HEAD); faults.length < this.#capacity; ) {
      const at = this.#at(head);
      const next = (head + 1) | 0;
      if (Atomics.load(words, at) !== next) break;
      faults.push({
        port: words[at + 1],
        page: (words[at + 2] >>> 0) + words[at + 3] * 2 ** 32,
        write: (words[at + 4] & WRITE_FLAG) !== 0,
        reason: REASONS[words[at + 4] & (WRITE_FLAG - 1)],
      });
      head = next;
      Atomics.store(words, HEAD, head);
    }
    return faults;
  }

  /** Events that found the ring full, since the IOMMU was made. */
  get dropped(): number {
    return Atomics.load(this.words, DROPPED) >>> 0;
  }

  #at(ticket: number): number {
    return HEADER_WORDS + ((ticket >>> 0) % this.#capacity) * ENTRY_WORDS;
  }
}
