import type { ObjectId } from "../../src/host/host.js";
import { ID_LAST, ID_ZERO, type Name } from "./operation.js";

/** An id that no object of a short sequence gets. */
const NEVER_USED = 0x7f000001;

/**
 * How one host numbers the objects that a sequence names. Both hosts take the lowest free id, which is checked at each
 * new object; what differs is only that a mock device of the kernel's has an object of its own besides.
 */
export class Ids {
  readonly #live = new Map<Name, ObjectId>();
  readonly #names = new Map<ObjectId, Name>();
  readonly #gone = new Map<Name, ObjectId>();

  /** Notes a new object. @throws Error where its id isn't the lowest that is free */
  add(name: Name, id: ObjectId): void {
    let lowest = 1;
    while (this.#names.has(lowest)) lowest++;
    if (id !== lowest) throw new Error(`${name} got the id ${id}, though ${lowest} is free`);
    this.#live.set(name, id);
    this.#names.set(id, name);
  }

  /** Notes that an object has ended. */
  end(name: Name): void {
    const id = this.#live.get(name);
    if (id === undefined) return;
    this.#live.delete(name);
    this.#names.delete(id);
    this.#gone.set(name, id);
  }

  has(name: Name): boolean {
    return this.#live.has(name);
  }

  /** The id of an object; of one that is gone the one that it had, as long as no other has it; or one that none has. */
  of(name: Name): ObjectId {
    const gone = this.#gone.get(name);
    if (!this.#live.has(name) && gone !== undefined && !this.#names.has(gone)) return gone;
    return this.ofLive(name);
  }

  /** The same, but of what is gone one that none has: for a call that makes objects, which may take the free ids. */
  ofLive(name: Name): ObjectId {
    if (name === ID_ZERO) return 0;
    if (name === ID_LAST) return 0xffffffff;
    return this.#live.get(name) ?? NEVER_USED;
  }

  nameOf(id: ObjectId): Name | undefined {
    return this.#names.get(id);
  }
}
