import { DirtmapError } from "../errors.js";

/*
 * C structures as data. A layout is written down once, field by field as in its header, and from it come the offsets,
 * the encoder and the decoder. The rules are those of the System V ABI on x86-64 and arm64, and of vfio-user's wire: a
 * scalar lies at a multiple of its size, a structure is padded to a multiple of its largest one's, little-endian.
 */

/** Integers by their C names. `u64` stands for `__aligned_u64` as well. */
const SCALARS = {
  u8: {
    size: 1,
    last: 0xff,
    get: (view: DataView, at: number) => view.getUint8(at),
    set: (view: DataView, at: number, value: number) => view.setUint8(at, value),
  },
  u16: {
    size: 2,
    last: 0xffff,
    get: (view: DataView, at: number) => view.getUint16(at, true),
    set: (view: DataView, at: number, value: number) => view.setUint16(at, value, true),
  },
  u32: {
    size: 4,
    last: 0xffff_ffff,
    get: (view: DataView, at: number) => view.getUint32(at, true),
    set: (view: DataView, at: number, value: number) => view.setUint32(at, value, true),
  },
  s32: {
    size: 4,
    first: -0x8000_0000,
    last: 0x7fff_ffff,
    get: (view: DataView, at: number) => view.getInt32(at, true),
    set: (view: DataView, at: number, value: number) => view.setInt32(at, value, true),
  },
  u64: {
    size: 8,
    last: 0xffff_ffff_ffff_ffffn,
    get: (view: DataView, at: number) => view.getBigUint64(at, true),
    set: (view: DataView, at: number, value: bigint) => view.setBigUint64(at, value, true),
  },
} as const;

/** One of {@link SCALARS} without the types that tell bigint from number. */
interface Scalar {
  readonly size: number;
  /** The least value; absent: 0. */
  readonly first?: number;
  readonly last: number | bigint;
  get(view: DataView, at: number): number | bigint;
  set(view: DataView, at: number, value: number | bigint): void;
}

export type ScalarName = keyof typeof SCALARS;

/** A field: a scalar, an array of scalars with its length, or a structure inside the structure. */
export type FieldType = ScalarName | readonly [ScalarName, number] | Struct<Fields>;
export type Fields = { readonly [name: string]: FieldType };

type ScalarValue<Name> = Name extends "u64" ? bigint : number;

type ValueOf<Type> = Type extends ScalarName
  ? ScalarValue<Type>
  : Type extends readonly [infer Element, number]
    ? readonly ScalarValue<Element>[]
    : Type extends Struct<infer Inner>
      ? Values<Inner>
      : never;

/** A structure's values: bigint for `u64`, number for what is shorter. */
export type Values<Of extends Fields> = { readonly [Name in keyof Of]: ValueOf<Of[Name]> };

type GivenOf<Type> = Type extends Struct<infer Inner> ? Given<Inner> : ValueOf<Type>;

/** Values for {@link Struct.encode}: what is left out is 0. */
export type Given<Of extends Fields> = { readonly [Name in keyof Of]?: GivenOf<Of[Name]> };

/** Where a field lies. */
export interface PlacedField {
  readonly name: string;
  /** What it is, or for an array what its elements are. */
  readonly type: ScalarName | Struct<Fields>;
  /** Elements of an array; null for a single field. */
  readonly count: number | null;
  /** offsetof, in bytes. */
  readonly offset: number;
  /** sizeof, in bytes. */
  readonly size: number;
}

/** The layout of a C structure without its flexible array, if it ends in one. */
export class Struct<Of extends Fields> {
  /** The structure's tag in its header; for a member without a tag, the path to it: `outer.member`. */
  readonly name: string;
  /** sizeof, in bytes. */
  readonly size: number;
  readonly alignment: number;
  /** In the header's order. */
  readonly fields: readonly PlacedField[];
  readonly #offsets: ReadonlyMap<string, number>;

  /** For {@link struct}. */
  constructor(name: string, fields: Of, tail?: Struct<Fields>) {
    let end = 0;
    let alignment = tail?.alignment ?? 1;
    this.fields = Object.entries(fields).map(([field, declared]) => {
      const [type, count] = typeof declared === "string" || declared instanceof Struct ? [declared, null] : declared;
      const own = typeof type === "string" ? SCALARS[type].size : type.alignment;
      const size = (typeof type === "string" ? SCALARS[type].size : type.size) * (count ?? 1);
      const offset = Math.ceil(end / own) * own;
      end = offset + size;
      alignment = Math.max(alignment, own);
      return { name: field, type, count, offset, size };
    });
    this.name = name;
    this.size = Math.ceil(end / alignment) * alignment;
    this.alignment = alignment;
    this.#offsets = new Map(this.fields.map(({ name, offset }) => [name, offset]));
  }

  /** offsetof, in bytes. */
  offsetOf(field: keyof Of & string): number {
    const offset = this.#offsets.get(field);
    if (offset === undefined) throw new RangeError(`struct ${this.name} has no field ${field}`);
    return offset;
  }

  /**
   * Writes the structure at `at` of `into`. What is not given becomes 0, padding too: the kernel refuses some structures
   * in which bytes that it doesn't know are set.
   * @param into default: new, of the structure's size
   * @throws RangeError for a place that is too small, and for a value that the field can't hold
   */
  encode(values: Given<Of>, into: Uint8Array = new Uint8Array(this.size), at = 0): Uint8Array {
    if (!this.#fits(into, at)) {
      throw new RangeError(`struct ${this.name} takes ${this.size} bytes, more than there are at ${at}`);
    }
    into.fill(0, at, at + this.size);
    this.#write(values, new DataView(into.buffer, into.byteOffset + at, this.size), 0);
    return into;
  }

  /**
   * Reads the structure at `at`.
   * @throws DirtmapError `TRUNCATED` where the bytes end before it does
   */
  decode(bytes: Uint8Array, at = 0): Values<Of> {
    if (!this.#fits(bytes, at)) {
      throw new DirtmapError(`struct ${this.name} takes ${this.size} bytes, more than there are at ${at}`, {
        code: "TRUNCATED",
      });
    }
    return this.#read(new DataView(bytes.buffer, bytes.byteOffset + at, this.size), 0);
  }

  #fits(bytes: Uint8Array, at: number): boolean {
    return at >= 0 && at + this.size <= bytes.length;
  }

  #write(values: Given<Of>, view: DataView, base: number): void {
    const given: Readonly<Record<string, unknown>> = values;
    for (const field of this.fields) {
      const value = given[field.name];
      if (value === undefined) continue;
      const at = base + field.offset;
      if (typeof field.type !== "string") field.type.#write(value as Given<Fields>, view, at);
      else if (field.count === null) this.#writeScalar(field, value, view, at);
      else this.#writeArray(field, value as readonly unknown[], view, at);
    }
  }

  #writeArray(field: PlacedField, values: readonly unknown[], view: DataView, at: number): void {
    if (values.length !== field.count) {
      throw new RangeError(`${this.name}.${field.name} has ${field.count} elements, not ${values.length}`);
    }
    const stride = field.size / field.count;
    values.forEach((value, index) => {
      this.#writeScalar(field, value, view, at + index * stride);
    });
  }

  #writeScalar(field: PlacedField, value: unknown, view: DataView, at: number): void {
    const scalar: Scalar = SCALARS[field.type as ScalarName];
    // A DataView would wrap silently, and a length of 2^32 become one of 0.
    const whole = typeof scalar.last === "bigint" ? typeof value === "bigint" : Number.isInteger(value);
    if (!whole || (value as number) < (scalar.first ?? 0) || (value as number) > scalar.last) {
      throw new RangeError(`${this.name}.${field.name} is a ${String(field.type)}, which can't hold ${String(value)}`);
    }
    scalar.set(view, at, value as number);
  }

  #read(view: DataView, base: number): Values<Of> {
    const values: Record<string, unknown> = {};
    for (const { name, type, count, offset } of this.fields) {
      const at = base + offset;
      if (typeof type !== "string") values[name] = type.#read(view, at);
      else if (count === null) values[name] = SCALARS[type].get(view, at);
      else {
        const { get, size } = SCALARS[type];
        values[name] = Array.from({ length: count }, (_, index) => get(view, at + index * size));
      }
    }
    return values as Values<Of>;
  }
}

/**
 * Declares a structure, with the field names and the order of its header.
 * @param tail of which structures its flexible array is, if it ends in one: they must be aligned
 */
export function struct<const Of extends Fields>(name: string, fields: Of, tail?: Struct<Fields>): Struct<Of> {
  return new Struct(name, fields, tail);
}
