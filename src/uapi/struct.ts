import { DirtmapError } from "../errors.js";

/*
 * C structures as data. A layout is written down once, field by field as in its header, and from it come the offsets,
 * the encoder and the decoder. The rules are those of the System V ABI on x86-64 and arm64, and of vfio-user's wire: a
 * scalar lies at a multiple of its size, a structure is padded to a multiple of its largest one's, little-endian.
 */

/** Integers by their C names. `u64` stands for `__aligned_u64` as well. */
const SCALARS = {
  u8: { size: 1, get: (view: DataView, at: number) => view.getUint8(at) },
  u16: { size: 2, get: (view: DataView, at: number) => view.getUint16(at, true) },
  u32: { size: 4, get: (view: DataView, at: number) => view.getUint32(at, true) },
  s32: { size: 4, get: (view: DataView, at: number) => view.getInt32(at, true) },
  u64: { size: 8, get: (view: DataView, at: number) => view.getBigUint64(at, true) },
} as const;

type ScalarName = keyof typeof SCALARS;

/** A field: a scalar, or a structure inside the structure. */
export type FieldType = ScalarName | Struct<Fields>;
export type Fields = { readonly [name: string]: FieldType };

type ValueOf<Type> = Type extends "u64"
  ? bigint
  : Type extends ScalarName
    ? number
    : Type extends Struct<infer Inner>
      ? Values<Inner>
      : never;

/** A structure's values: bigint for `u64`, number for what is shorter. */
export type Values<Of extends Fields> = { readonly [Name in keyof Of]: ValueOf<Of[Name]> };

type GivenOf<Type> = Type extends Struct<infer Inner> ? Given<Inner> : ValueOf<Type>;

/** Values for {@link Struct.encode}: what is left out is 0. */
export type Given<Of extends Fields> = { readonly [Name in keyof Of]?: GivenOf<Of[Name]> };

interface Placed {
  readonly name: string;
  readonly type: FieldType;
  readonly offset: number;
}

/** The layout of a C structure without its flexible array, if it ends in one. */
export class Struct<Of extends Fields> {
  /** The structure's tag in its header. */
  readonly name: string;
  /** sizeof, in bytes. */
  readonly size: number;
  readonly alignment: number;
  readonly #fields: readonly Placed[];
  readonly #offsets: ReadonlyMap<string, number>;

  /** For {@link struct}. */
  constructor(name: string, fields: Of) {
    let end = 0;
    let alignment = 1;
    this.#fields = Object.entries(fields).map(([field, type]) => {
      const { size, alignment: own } =
        typeof type === "string" ? { ...SCALARS[type], alignment: SCALARS[type].size } : type;
      const offset = Math.ceil(end / own) * own;
      end = offset + size;
      alignment = Math.max(alignment, own);
      return { name: field, type, offset };
    });
    this.name = name;
    this.size = Math.ceil(end / alignment) * alignment;
    this.alignment = alignment;
    this.#offsets = new Map(this.#fields.map(({ name, offset }) => [name, offset]));
  }

  /** Names in the header's order. */
  get fields(): readonly (keyof Of & string)[] {
    return this.#fields.map(({ name }) => name);
  }

  /** offsetof, in bytes. */
  offsetOf(field: keyof Of & string): number {
    return this.#offsets.get(field) ?? Number.NaN;
  }

  /**
   * Writes a structure at `at` of `into`, whose other fields become 0; padding stays as it is.
   * @param into default: new, of the structure's size
   * @throws RangeError for a place that is too small
   */
  encode(values: Given<Of>, into: Uint8Array = new Uint8Array(this.size), at = 0): Uint8Array {
    const view = new DataView(into.buffer, into.byteOffset + at, this.size);
    this.#write(values, view, 0);
    return into;
  }

  /**
   * Reads the structure at `at`.
   * @throws DirtmapError `TRUNCATED` where the bytes end before it does
   */
  decode(bytes: Uint8Array, at = 0): Values<Of> {
    if (at < 0 || at + this.size > bytes.length) {
      throw new DirtmapError(`struct ${this.name} needs ${this.size} bytes, and ${bytes.length - at} are there`, {
        code: "TRUNCATED",
      });
    }
    return this.#read(new DataView(bytes.buffer, bytes.byteOffset + at, this.size), 0);
  }

  #write(values: Given<Of>, view: DataView, base: number): void {
    const given: Readonly<Record<string, unknown>> = values;
    for (const { name, type, offset } of this.#fields) {
      const value = given[name] ?? 0;
      const at = base + offset;
      if (type === "u64") view.setBigUint64(at, BigInt(value as bigint), true);
      else if (type === "u32") view.setUint32(at, value as number, true);
      else if (type === "s32") view.setInt32(at, value as number, true);
      else if (type === "u16") view.setUint16(at, value as number, true);
      else if (type === "u8") view.setUint8(at, value as number);
      else type.#write(value === 0 ? {} : (value as Given<Fields>), view, at);
    }
  }

  #read(view: DataView, base: number): Values<Of> {
    const values: Record<string, unknown> = {};
    for (const { name, type, offset } of this.#fields) {
      values[name] =
        typeof type === "string" ? SCALARS[type].get(view, base + offset) : type.#read(view, base + offset);
    }
    return values as Values<Of>;
  }
}

/** Declares a structure, with the field names and the order of its header. */
export function struct<const Of extends Fields>(name: string, fields: Of): Struct<Of> {
  return new Struct(name, fields);
}
