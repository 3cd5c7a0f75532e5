import { type ErrnoName, UapiError } from "../../../src/uapi/errno.js";

/** Names of an object's methods. */
type Operation<T> = { [Name in keyof T]: T[Name] extends (...args: never[]) => unknown ? Name : never }[keyof T] &
  string;
type Arguments<T, Name extends keyof T> = T[Name] extends (...args: infer Args) => unknown ? Args : never;

/** What a test has the operations of an object do, and what it sees of them. */
export class Script<T> {
  readonly #done: { readonly operation: Operation<T>; readonly args: readonly unknown[]; readonly result: unknown }[] =
    [];
  readonly #failures = new Map<Operation<T>, ErrnoName[]>();
  readonly #gates = new Map<Operation<T>, Promise<void>>();

  /** The next calls of an operation are refused, each with one of these; they do nothing. */
  fail(operation: Operation<T>, ...codes: ErrnoName[]): void {
    this.#failures.set(operation, [...(this.#failures.get(operation) ?? []), ...codes]);
  }

  /** The next call of an operation waits until the function that is returned is called. */
  hold(operation: Operation<T>): () => void {
    let letGo = () => {};
    const gate = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    this.#gates.set(operation, gate);
    return letGo;
  }

  /** The arguments of the calls of an operation that were done, oldest first. */
  done<Name extends Operation<T>>(operation: Name): Arguments<T, Name>[] {
    return this.#done.filter((call) => call.operation === operation).map(({ args }) => args as Arguments<T, Name>);
  }

  /** All calls that were done, in the order in which they ended. */
  get calls(): readonly {
    readonly operation: Operation<T>;
    readonly args: readonly unknown[];
    readonly result: unknown;
  }[] {
    return this.#done;
  }

  /** What a call of the object goes through. */
  async run(operation: Operation<T>, args: readonly unknown[], call: () => unknown): Promise<unknown> {
    const gate = this.#gates.get(operation);
    this.#gates.delete(operation);
    await gate;
    const code = this.#failures.get(operation)?.shift();
    if (code !== undefined) throw new UapiError(code, { syscall: "fake", attempted: operation });
    const result = await call();
    this.#done.push({ operation, args, result });
    return result;
  }
}

/**
 * An object of the same class, whose asynchronous operations a test can make fail or wait, and sees afterwards. What it
 * does is what the object does. Its methods are properties of its own: a test may put others in their place.
 */
export function scripted<T extends object>(target: T): T & { readonly script: Script<T> } {
  const script = new Script<T>();
  const wrapper = Object.create(Object.getPrototypeOf(target)) as Record<PropertyKey, unknown>;
  for (const [name, { value }] of propertiesOf(target)) {
    if (typeof value !== "function") {
      const get = () => Reflect.get(target, name);
      Object.defineProperty(wrapper, name, { get, enumerable: true, configurable: true });
      continue;
    }
    const isAsync = value.constructor.name === "AsyncFunction";
    wrapper[name] = (...args: unknown[]) => {
      const call = () => value.apply(target, args);
      return isAsync ? script.run(name as Operation<T>, args, call) : call();
    };
  }
  return Object.assign(wrapper, { script }) as unknown as T & { readonly script: Script<T> };
}

/** Properties of an object and of its classes; what a class overrides is there once. */
function propertiesOf(object: object): Map<PropertyKey, PropertyDescriptor> {
  const properties = new Map<PropertyKey, PropertyDescriptor>();
  for (let from = object; from !== Object.prototype; from = Object.getPrototypeOf(from) as object) {
    for (const name of Reflect.ownKeys(from)) {
      const property = Object.getOwnPropertyDescriptor(from, name);
      if (name !== "constructor" && property !== undefined && !properties.has(name)) properties.set(name, property);
    }
  }
  return properties;
}
