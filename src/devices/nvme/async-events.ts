import { badState } from "../records.js";
import { MAX_ASYNC_REQUESTS } from "./limits.js";
import { LOG } from "./spec.js";

/** Events that wait to be told; more than these are lost. */
const MAX_EVENTS = 8;

/** Error Status events (5.2): a doorbell of a queue that there isn't, and a value that can't be. */
export const DOORBELL_ERROR = { INVALID_REGISTER: 0x00, INVALID_VALUE: 0x01 } as const;

export const ASYNC_EVENTS_BYTES = (2 + MAX_ASYNC_REQUESTS + MAX_EVENTS) * 4;

/**
 * Asynchronous events: each completes one of the requests that wait for them. After an event, others of its type are held
 * back until the host has read the log page that belongs to it. There is one type here, of the error log.
 */
export class AsyncEvents {
  /** Command identifiers of the requests that wait, the oldest first. */
  #requests: number[] = [];
  /** Dword 0 of the completions. */
  #events: number[] = [];
  #heldBack = false;

  /** A request comes in; false where there are as many as there may be. */
  request(cid: number): boolean {
    if (this.#requests.length >= MAX_ASYNC_REQUESTS) return false;
    this.#requests.push(cid);
    return true;
  }

  /** Abort: takes a request back; false where there is none. */
  withdraw(cid: number): boolean {
    const index = this.#requests.indexOf(cid);
    if (index >= 0) this.#requests.splice(index, 1);
    return index >= 0;
  }

  /** A doorbell was rung that should not have been: one of {@link DOORBELL_ERROR}. */
  doorbellError(info: number): void {
    // Type 0: error status.
    if (this.#events.length < MAX_EVENTS) this.#events.push((LOG.ERROR << 16) | (info << 8));
  }

  logWasRead(page: number): void {
    if (page === LOG.ERROR) this.#heldBack = false;
  }

  /** True where {@link next} would give one. */
  get isDue(): boolean {
    return this.#requests.length > 0 && this.#events.length > 0 && !this.#heldBack;
  }

  /** The next event to tell, and the request that it completes. */
  next(): { cid: number; result: number } | undefined {
    if (!this.isDue) return undefined;
    const cid = this.#requests.shift() ?? 0;
    const result = this.#events.shift() ?? 0;
    this.#heldBack = true;
    return { cid, result };
  }

  /** A controller reset: requests are gone without a completion. */
  reset(): void {
    this.#requests = [];
    this.#events = [];
    this.#heldBack = false;
  }

  save(): Uint8Array {
    const dwords = new Uint32Array(ASYNC_EVENTS_BYTES / 4);
    dwords[0] = this.#requests.length | (this.#heldBack ? 0x8000_0000 : 0);
    dwords[1] = this.#events.length;
    dwords.set(this.#requests, 2);
    dwords.set(this.#events, 2 + MAX_ASYNC_REQUESTS);
    return new Uint8Array(dwords.buffer);
  }

  /** @param data ASYNC_EVENTS_BYTES. @throws DirtmapError `BAD_DEVICE_STATE` */
  load(data: Uint8Array): void {
    const dwords = new Uint32Array(data.slice().buffer);
    const requests = dwords[0] & 0x7fff_ffff;
    const events = dwords[1];
    if (requests > MAX_ASYNC_REQUESTS || events > MAX_EVENTS) throw badState("it has too many asynchronous events");
    this.#heldBack = dwords[0] >>> 31 === 1;
    this.#requests = [...dwords.subarray(2, 2 + requests)];
    this.#events = [...dwords.subarray(2 + MAX_ASYNC_REQUESTS, 2 + MAX_ASYNC_REQUESTS + events)];
  }
}
