import type { ObjectId } from "../host/host.js";
import { UapiError } from "../uapi/errno.js";

/*
 * iommufd's object table (drivers/iommu/iommufd/main.c). Objects form a graph: each holds what it uses by a count in
 * `users`, and can be destroyed only while nothing holds it.
 */

/** What the table holds. */
export abstract class IommufdObject {
  /** Its id while it is in the table, 0 before and after. */
  id: ObjectId = 0;
  /** Who holds it besides the table: objects made from it, and the driver of a bound device or an access. */
  users = 0;

  /** Lets go of what the object holds. Called once, when it is out of the table and nothing holds it. */
  abstract destroy(): Promise<void>;
}

/**
 * Ids to objects. Ids start at 1, the lowest free one is taken, as Linux allocates them.
 * Invariant: every id below `#free` is taken.
 */
export class ObjectTable {
  readonly #objects = new Map<ObjectId, IommufdObject>();
  #free = 1;

  get size(): number {
    return this.#objects.size;
  }

  values(): IterableIterator<IommufdObject> {
    return this.#objects.values();
  }

  add(object: IommufdObject): ObjectId {
    while (this.#objects.has(this.#free)) this.#free++;
    object.id = this.#free;
    this.#objects.set(object.id, object);
    return object.id;
  }

  /** The object with this id, if it is of this type. @throws UapiError ENOENT */
  get<T extends IommufdObject>(
    id: ObjectId,
    type: abstract new (...args: never[]) => T,
    call: { syscall: string; attempted: string },
  ): T {
    const object = this.#objects.get(id);
    if (object instanceof type) return object;
    throw new UapiError("ENOENT", {
      ...call,
      attempted: `${call.attempted}: ${describe(id, object, type.name)}`,
      remedy: "give the id of an object of that type that has not been destroyed",
    });
  }

  /** The object with this id, whatever it is. */
  find(id: ObjectId): IommufdObject | undefined {
    return this.#objects.get(id);
  }

  /** Takes an object out, so that nobody can find it any more. */
  remove(object: IommufdObject): void {
    this.#objects.delete(object.id);
    this.#free = Math.min(this.#free, object.id);
    object.id = 0;
  }

  /** IOMMU_DESTROY. @throws UapiError ENOENT for an unknown id, EBUSY while something holds the object */
  async destroy(id: ObjectId): Promise<void> {
    const object = this.get(id, IommufdObject, { syscall: "IOMMU_DESTROY", attempted: `destroy object ${id}` });
    if (object.users > 0) {
      throw new UapiError("EBUSY", {
        syscall: "IOMMU_DESTROY",
        attempted: `destroy object ${id}, which ${object.users} other${object.users === 1 ? " uses" : "s use"}`,
        remedy: "destroy, detach or unbind its users first",
      });
    }
    this.remove(object);
    await object.destroy();
  }
}

function describe(id: ObjectId, object: IommufdObject | undefined, wanted: string): string {
  return object === undefined ? `there is no object ${id}` : `object ${id} is no ${wanted}`;
}
