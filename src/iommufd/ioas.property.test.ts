import fc from "fast-check";
import { expect, it } from "vitest";
import { errno } from "../../test/support/errno.js";
import { type FakeDomain, FakeIommu, openIommufd } from "../../test/support/fake-host/iommu.js";
import type { ObjectId } from "../host/host.js";
import { U64_MAX } from "../memory/address.js";
import { createArena } from "../memory/arena.js";
import type { ErrnoName } from "../uapi/errno.js";

/*
 * Random sequences of calls, right and wrong, against a model that is a list of mappings and nothing else.
 */

const ARENA = 64 * 4096;

interface Mapping {
  start: bigint;
  length: bigint;
  offset: bigint;
  readable: boolean;
  writeable: boolean;
  /** What the memory was first mapped as. */
  firstWriteable: boolean;
}

/** One IOAS as the model sees it. */
class Model {
  mappings: Mapping[] = [];
  allowed: { start: bigint; last: bigint }[] = [];
  /** Devices attached, each with an HWPT of its own. */
  devices = 0;
  hugePages = true;
  /** HWPTs made by hand demand pages as well. */
  hwpts = 0;

  get alignment(): bigint {
    return this.hwpts > 0 || !this.hugePages ? 4096n : 1n;
  }

  get reserved(): { start: bigint; last: bigint }[] {
    const spans: { start: bigint; last: bigint }[] = [];
    if (this.hwpts > 0) spans.push({ start: 128n * 4096n, last: U64_MAX });
    if (this.devices > 0) spans.push({ start: 40n * 4096n, last: 44n * 4096n - 1n });
    return spans;
  }

  overlap(start: bigint, last: bigint): Mapping[] {
    return this.mappings.filter((m) => m.start <= last && m.start + m.length - 1n >= start);
  }

  isReserved(start: bigint, last: bigint): boolean {
    return this.reserved.some((r) => r.start <= last && r.last >= start);
  }

  aligned(alignment: bigint): boolean {
    return this.mappings.every(({ start, length, offset }) => (start | length | offset) % alignment === 0n);
  }

  checkMap(pieces: Omit<Mapping, "start">[], length: bigint, iova: bigint): ErrnoName | "none" {
    if (length === 0n || length % this.alignment !== 0n) return "EINVAL";
    if (iova % this.alignment !== 0n) return "EINVAL";
    if (iova + length - 1n > U64_MAX) return "EOVERFLOW";
    if (this.isReserved(iova, iova + length - 1n)) return "EINVAL";
    if (this.overlap(iova, iova + length - 1n).length > 0) return "EEXIST";
    for (const { writeable, firstWriteable, offset, length } of pieces) {
      if (writeable && !firstWriteable) return "EPERM";
      if (offset % this.alignment !== 0n) return "EINVAL";
      if (offset + length > BigInt(ARENA)) return "EFAULT";
    }
    return "none";
  }

  add(pieces: Omit<Mapping, "start">[], iova: bigint): void {
    let start = iova;
    for (const piece of pieces) {
      this.mappings.push({ ...piece, start });
      start += piece.length;
    }
    this.mappings.sort((a, b) => (a.start < b.start ? -1 : 1));
  }

  /** Page to memory, as each domain must show it. */
  table(): Map<number, { offset: number; writeable: boolean }> {
    const table = new Map<number, { offset: number; writeable: boolean }>();
    for (const { start, length, offset, writeable } of this.mappings) {
      for (let page = 0; page < Number(length / 4096n); page++) {
        table.set(Number(start / 4096n) + page, { offset: Number(offset) + page * 4096, writeable });
      }
    }
    return table;
  }
}

// Mostly pages, sometimes bytes, seldom the end of the address space.
const bytes = (pages: number) =>
  fc.oneof(
    { weight: 12, arbitrary: fc.nat(pages).map((n) => BigInt(n) * 4096n) },
    { weight: 2, arbitrary: fc.nat(pages * 4096).map(BigInt) },
    { weight: 1, arbitrary: fc.constantFrom(U64_MAX, U64_MAX - 1n, U64_MAX - 4095n) },
  );
const small = fc.oneof(
  { weight: 12, arbitrary: fc.nat(6).map((n) => BigInt(n) * 4096n) },
  { weight: 1, arbitrary: fc.nat(9000).map(BigInt) },
);
const permissions = fc.oneof(
  { weight: 6, arbitrary: fc.constant({ readable: true, writeable: true }) },
  { weight: 3, arbitrary: fc.record({ readable: fc.boolean(), writeable: fc.boolean() }) },
);
const space = fc.oneof({ weight: 8, arbitrary: fc.nat(1) }, { weight: 1, arbitrary: fc.constant(2) });
/** A range out of nowhere, or one from the start of a mapping to the end of the same or a later one, shifted a little. */
const range = fc.oneof(
  { weight: 1, arbitrary: fc.record({ iova: bytes(64), length: bytes(32) }) },
  { weight: 4, arbitrary: fc.record({ which: fc.nat(), more: fc.nat(2), head: fc.nat(1), tail: fc.nat(1) }) },
);
type Range = typeof range extends fc.Arbitrary<infer R> ? R : never;

function resolve(range: Range, model: Model | undefined): { iova: bigint; length: bigint } {
  if ("iova" in range) return range;
  const mappings = model?.mappings ?? [];
  if (mappings.length === 0) return { iova: 0n, length: 4096n };
  const first = range.which % mappings.length;
  const last = mappings[Math.min(first + range.more, mappings.length - 1)];
  let iova = mappings[first].start + BigInt(range.head) * 4096n * BigInt(range.which % 2);
  if (iova > U64_MAX) iova = U64_MAX;
  const end = last.start + last.length + BigInt(range.tail) * 4096n;
  return { iova, length: end > iova ? end - iova : 0n };
}

const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      op: fc.constant("map" as const),
      space,
      iova: fc.option(bytes(64)),
      offset: small,
      length: small,
      permissions,
    }),
  },
  { weight: 4, arbitrary: fc.record({ op: fc.constant("unmap" as const), space, range }) },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant("copy" as const),
      space,
      to: space,
      range,
      target: bytes(64),
      permissions,
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("clear" as const), space }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("attach" as const), space }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("detach" as const), space }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("hugePages" as const), space, on: fc.boolean() }) },
  {
    weight: 1,
    arbitrary: fc.record({
      op: fc.constant("allow" as const),
      space,
      ranges: fc.array(fc.tuple(bytes(64), bytes(64)), { maxLength: 2 }),
    }),
  },
);

it("an IOAS answers each call as the model does, and every domain shows what the model says is mapped", async () => {
  const arena = createArena(ARENA);
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 60, size: "max" }), async (steps) => {
      const iommufd = openIommufd([arena]);
      // The third id is of no IOAS.
      const ids = [await iommufd.allocIoas(), await iommufd.allocIoas(), 77];
      const models = [new Model(), new Model()];
      const iommu = new FakeIommu({ aperture: { first: 0, last: 127 }, reserved: [{ first: 40, last: 43 }] });
      const attached: { device: ObjectId; hwpt: ObjectId; domain: FakeDomain }[][] = [[], []];

      for (const step of steps) {
        const id = ids[step.space];
        const model = models[step.space];
        switch (step.op) {
          case "map": {
            const { iova, offset, length } = step;
            const { readable, writeable } = step.permissions;
            const span = { arena, offset: Number(offset), length: Number(length) };
            const call = iommufd.map(id, span, { ...step.permissions, ...(iova === null ? {} : { iova }) });
            if (iova === U64_MAX) expect(await errno(call)).toBe("EOVERFLOW");
            else if (!readable && !writeable) expect(await errno(call)).toBe("EINVAL");
            else if (model === undefined) expect(await errno(call)).toBe("ENOENT");
            else {
              const pieces = [{ length, offset, readable, writeable, firstWriteable: writeable }];
              const chosen = iova ?? (await call.catch(() => null));
              if (chosen === null) {
                // Which error the allocator gives is its own test; here nothing may have changed.
                expect(await errno(call)).not.toBe("none");
                break;
              }
              const expected = model.checkMap(pieces, length, chosen);
              expect(await errno(call)).toBe(expected);
              if (iova === null && model.allowed.length > 0) {
                const last = chosen + length - 1n;
                expect(model.allowed.some((range) => range.start <= chosen && range.last >= last)).toBe(true);
              }
              if (expected === "none") model.add(pieces, chosen);
            }
            break;
          }
          case "unmap": {
            const { iova, length } = resolve(step.range, model);
            const call = iommufd.unmap(id, iova, length);
            const all = iova === 0n && length === U64_MAX;
            if (model === undefined) expect(await errno(call)).toBe("ENOENT");
            else if (!all && (iova === U64_MAX || length === U64_MAX)) expect(await errno(call)).toBe("EOVERFLOW");
            else if (length === 0n) expect(await errno(call)).toBe("EINVAL");
            else if (iova + length - 1n > U64_MAX) expect(await errno(call)).toBe("EOVERFLOW");
            else {
              let gone = 0n;
              let split = false;
              for (const m of model.overlap(iova, iova + length - 1n)) {
                split = m.start < iova || m.start + m.length > iova + length;
                if (split) break;
                gone += m.length;
                model.mappings.splice(model.mappings.indexOf(m), 1);
              }
              if (split || (gone === 0n && !all)) expect(await errno(call)).toBe("ENOENT");
              else expect(await call).toBe(gone);
            }
            break;
          }
          case "copy": {
            const { target } = step;
            const { iova, length } = resolve(step.range, model);
            const { readable, writeable } = step.permissions;
            const call = iommufd.copy(
              { ioas: id, iova, length },
              { ioas: ids[step.to], iova: target, ...step.permissions },
            );
            const to = models[step.to];
            if ([iova, target, length].includes(U64_MAX)) expect(await errno(call)).toBe("EOVERFLOW");
            else if (!readable && !writeable) expect(await errno(call)).toBe("EINVAL");
            else if (model === undefined) expect(await errno(call)).toBe("ENOENT");
            else if (length === 0n) expect(await errno(call)).toBe("EINVAL");
            else if (iova + length - 1n > U64_MAX) expect(await errno(call)).toBe("EOVERFLOW");
            else {
              const pieces: Omit<Mapping, "start">[] = [];
              let at = iova;
              const end = iova + length;
              for (const m of model.overlap(iova, end - 1n)) {
                if (m.start > at) break;
                let upTo = m.start + m.length;
                if (upTo > end) upTo = end;
                const offset = m.offset + at - m.start;
                pieces.push({ length: upTo - at, offset, readable, writeable, firstWriteable: m.firstWriteable });
                at = upTo;
              }
              if (at < end || to === undefined) expect(await errno(call)).toBe("ENOENT");
              else {
                const expected = to.checkMap(pieces, length, target);
                expect(await errno(call)).toBe(expected);
                if (expected === "none") to.add(pieces, target);
              }
            }
            break;
          }
          case "clear": {
            if (model === undefined) break;
            const sum = model.mappings.reduce((total, { length }) => total + length, 0n);
            expect(await iommufd.unmap(id, 0n, U64_MAX)).toBe(sum);
            model.mappings = [];
            break;
          }
          case "attach": {
            if (model === undefined) break;
            const port = attached[0].length + attached[1].length;
            const device = await iommufd.bindDevice({ port, iommu, mdev: null });
            const conflicts = (start: bigint, last: bigint) =>
              model.overlap(start, last).length > 0 || model.allowed.some((a) => a.start <= last && a.last >= start);
            const alloc = iommufd.allocHwpt({ device, ioas: id, dirtyTracking: false });
            if (!model.aligned(4096n) || conflicts(128n * 4096n, U64_MAX)) {
              expect(await errno(alloc)).toBe("EADDRINUSE");
              await iommufd.unbindDevice(device);
              break;
            }
            const hwpt = await alloc;
            model.hwpts++;
            const domain = iommu.domains[iommu.domains.length - 1];
            const attach = iommufd.attachDevice(device, hwpt);
            if (conflicts(40n * 4096n, 44n * 4096n - 1n)) {
              expect(await errno(attach)).toBe("EADDRINUSE");
              await iommufd.unbindDevice(device);
              await iommufd.destroy(hwpt);
              model.hwpts--;
              break;
            }
            expect(await attach).toBe(hwpt);
            model.devices++;
            attached[step.space].push({ device, hwpt, domain });
            break;
          }
          case "detach": {
            const last = attached[step.space]?.pop();
            if (model === undefined || last === undefined) break;
            expect(await errno(iommufd.destroy(last.hwpt))).toBe("EBUSY");
            await iommufd.unbindDevice(last.device);
            await iommufd.destroy(last.hwpt);
            expect(last.domain.disposed).toBe(true);
            model.devices--;
            model.hwpts--;
            break;
          }
          case "hugePages": {
            const call = iommufd.setOption({ option: "HUGE_PAGES", ioas: id }, step.on ? 1 : 0);
            let expected: ErrnoName | "none" = "none";
            if (model === undefined) expected = "ENOENT";
            else if (!step.on && model.hugePages) {
              if (model.hwpts > 0 && model.mappings.length > 0) expected = "EINVAL";
              else if (!model.aligned(4096n)) expected = "EADDRINUSE";
            }
            expect(await errno(call)).toBe(expected);
            if (expected === "none") model.hugePages = step.on;
            break;
          }
          case "allow": {
            const ranges = step.ranges.map(([start, last]) => ({ start, last }));
            const call = iommufd.allowIovas(id, ranges);
            let expected: ErrnoName | "none" = "none";
            const [a, b] = ranges;
            if (model === undefined) expected = "ENOENT";
            else if (ranges.some(({ start, last }) => start >= last)) expected = "EINVAL";
            else if (b !== undefined && a.start <= b.last && b.start <= a.last) expected = "EINVAL";
            else if (ranges.some(({ start, last }) => model.isReserved(start, last))) expected = "EADDRINUSE";
            expect(await errno(call)).toBe(expected);
            if (expected === "none") model.allowed = ranges;
            break;
          }
        }
        for (const [index, model] of models.entries()) {
          expect((await iommufd.iovaRanges(ids[index])).alignment).toBe(Number(model.alignment));
          const table = model.table();
          for (const { domain } of attached[index]) {
            const shown = new Map(
              [...domain.entries].map(([page, { offset, writeable }]) => [page, { offset, writeable }]),
            );
            expect([...shown].sort(([x], [y]) => x - y)).toEqual([...table].sort(([x], [y]) => x - y));
          }
        }
      }
      await iommufd[Symbol.asyncDispose]();
    }),
    { numRuns: 150 },
  );
});
