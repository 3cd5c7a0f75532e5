import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Fields, type ScalarName, type Struct, struct, type Values } from "./struct.js";

/** A field as the model sees it: how many bytes an element has, how many elements, or the fields inside. */
type Shape = { bytes: number; signed: boolean; count: number | null } | { inner: Shape[] };

const SCALARS: readonly [ScalarName, number, boolean][] = [
  ["u8", 1, false],
  ["u16", 2, false],
  ["u32", 4, false],
  ["s32", 4, true],
  ["u64", 8, false],
];

/**
 * The compiler's rules told another way: padding is appended one byte at a time until the place is right, and integers
 * are taken apart byte by byte. Values are drawn along the way from `draw`.
 */
function model(shapes: readonly Shape[], draw: (bytes: number) => bigint, bytes: number[] = []): unknown[] {
  const start = bytes.length;
  const values = shapes.map((shape) => {
    while ((bytes.length - start) % alignmentOf(shape) !== 0) bytes.push(0);
    if ("inner" in shape) return model(shape.inner, draw, bytes);
    const elements = Array.from({ length: shape.count ?? 1 }, () => {
      const raw = draw(shape.bytes);
      for (let byte = 0; byte < shape.bytes; byte++) bytes.push(Number((raw >> BigInt(8 * byte)) & 0xffn));
      if (shape.bytes === 8) return raw;
      return Number(shape.signed ? BigInt.asIntN(8 * shape.bytes, raw) : raw);
    });
    return shape.count === null ? elements[0] : elements;
  });
  while ((bytes.length - start) % Math.max(1, ...shapes.map(alignmentOf)) !== 0) bytes.push(0);
  return values;
}

function alignmentOf(shape: Shape): number {
  return "inner" in shape ? Math.max(...shape.inner.map(alignmentOf)) : shape.bytes;
}

function declare(shapes: readonly Shape[]): Struct<Fields> {
  const fields = shapes.map((shape, index): [string, Fields[string]] => {
    if ("inner" in shape) return [`f${index}`, declare(shape.inner)];
    const type = SCALARS.find(([, bytes, signed]) => bytes === shape.bytes && signed === shape.signed)?.[0] ?? "u8";
    return [`f${index}`, shape.count === null ? type : [type, shape.count]];
  });
  return struct("any", Object.fromEntries(fields));
}

function named(shapes: readonly Shape[], values: readonly unknown[]): Record<string, unknown> {
  return Object.fromEntries(
    shapes.map((shape, index) => {
      const value = values[index];
      return [`f${index}`, "inner" in shape ? named(shape.inner, value as unknown[]) : value];
    }),
  );
}

const { shapes: anyShapes } = fc.letrec<{ shapes: Shape[]; shape: Shape }>((tie) => ({
  shapes: fc.array(tie("shape"), { minLength: 1, maxLength: 8 }),
  shape: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    fc
      .tuple(fc.constantFrom(...SCALARS), fc.option(fc.integer({ min: 1, max: 5 }), { freq: 3 }))
      .map(([[, bytes, signed], count]): Shape => ({ bytes, signed, count })),
    tie("shapes").map((inner): Shape => ({ inner })),
  ),
}));

describe("struct", () => {
  it("lays out, encodes and decodes any structure as a compiler and a little-endian machine would", () => {
    fc.assert(
      fc.property(anyShapes, fc.infiniteStream(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })), (shapes, stream) => {
        const bytes: number[] = [];
        const drawn = model(shapes, (width) => BigInt.asUintN(8 * width, stream.next().value ?? 0n), bytes);
        const layout = declare(shapes);
        const values = named(shapes, drawn) as Values<Fields>;
        expect(layout.size).toBe(bytes.length);
        expect([...layout.encode(values)]).toEqual(bytes);
        expect(layout.decode(Uint8Array.from(bytes))).toEqual(values);
      }),
      { numRuns: 300 },
    );
  });

  const mixed = struct("mixed", {
    tag: "u8",
    wide: "u64",
    list: ["u16", 3],
    inner: struct("pair", { a: "u8", b: "u32" }),
  });

  it("tells where each field lies", () => {
    expect(mixed.fields.map(({ name, offset, size }) => [name, offset, size])).toEqual([
      ["tag", 0, 1],
      ["wide", 8, 8],
      ["list", 16, 6],
      ["inner", 24, 8],
    ]);
    expect(mixed.size).toBe(32);
    expect(mixed.alignment).toBe(8);
    expect(mixed.offsetOf("list")).toBe(16);
    expect(() => mixed.offsetOf("lost" as "list")).toThrow(RangeError);
  });

  it("clears what is not given, padding too, and leaves what lies around it alone", () => {
    const bytes = new Uint8Array(40).fill(0xff);
    expect(mixed.encode({ tag: 1, inner: { b: 2 } }, bytes, 4)).toBe(bytes);
    expect([...bytes.subarray(0, 4), ...bytes.subarray(36)]).toEqual(Array(8).fill(0xff));
    expect(bytes.subarray(4, 36).reduce((sum, byte) => sum + byte)).toBe(3);
    expect(mixed.decode(bytes, 4)).toEqual({ tag: 1, wide: 0n, list: [0, 0, 0], inner: { a: 0, b: 2 } });
  });

  it("works in a view of a larger buffer, and never outside of it", () => {
    const buffer = new Uint8Array(100);
    const view = buffer.subarray(10, 42);
    mixed.encode({ tag: 7 }, view);
    expect(buffer[10]).toBe(7);
    expect(() => mixed.encode({}, buffer.subarray(10, 41))).toThrow(RangeError);
    expect(() => mixed.encode({}, view, 1)).toThrow(RangeError);
    expect(() => mixed.encode({}, view, -1)).toThrow(RangeError);
    expect(() => mixed.decode(view, 1)).toThrow(expect.objectContaining({ code: "TRUNCATED" }));
    expect(() => mixed.decode(view, -1)).toThrow(expect.objectContaining({ code: "TRUNCATED" }));
  });

  it.each([
    [{ tag: 256 }],
    [{ tag: -1 }],
    [{ tag: 1.5 }],
    [{ tag: Number.NaN }],
    [{ wide: 2n ** 64n }],
    [{ wide: -1n }],
    [{ wide: 1 as unknown as bigint }],
    [{ tag: 1n as unknown as number }],
    [{ list: [1, 2] }],
    [{ list: [1, 2, 65_536] }],
    [{ inner: { b: 2 ** 32 } }],
  ])("refuses %o, which would not arrive as it is", (values) => {
    expect(() => mixed.encode(values)).toThrow(RangeError);
  });
});
