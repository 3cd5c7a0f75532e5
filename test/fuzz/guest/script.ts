import { PCI_COMMAND, REGION } from "../../../src/devices/pci-model.js";
import { PAGE_SIZE, U64_MAX } from "../../../src/memory/address.js";
import type { Random } from "../../../tools/random.js";
import { BAR_PAGE, BUS_PAGES, REGIONS } from "./layout.js";
import type { GuestOperation, RegionWrite } from "./operation.js";

/** At and around every limit that a field can have. */
const NUMBERS: readonly bigint[] = [
  ...[0n, 1n, 2n, 3n, 7n, 8n, 15n, 16n, 31n, 32n, 63n, 64n, 127n, 128n, 255n, 256n, 1023n, 1024n, 4095n, 4096n, 4097n],
  ...[
    0x7fffn,
    0x8000n,
    0xffffn,
    0x10000n,
    2n ** 24n,
    2n ** 24n + 1n,
    2n ** 31n - 1n,
    2n ** 31n,
    2n ** 32n - 1n,
    2n ** 32n,
  ],
  ...[
    2n ** 52n - 1n,
    2n ** 52n,
    2n ** 53n - 1n,
    2n ** 53n,
    2n ** 53n + 1n,
    2n ** 63n,
    U64_MAX - 4095n,
    U64_MAX - 1n,
    U64_MAX,
  ],
];

/** Pages of the large region in which a driver that has its wits about it puts its queues, and nothing else. */
const QUEUE_PAGES = 24;

/** Bytes of the guest's memory, as it is now. */
export type Peek = (address: number, bytes: number) => Uint8Array;

/** Where the next value comes from: right, as its caller gives it, or in few cases wrong. */
export class Source {
  readonly random: Random;
  /** The guest's memory: it looks at what its device has written. */
  readonly peek: Peek;
  /** How many of 1000 values are wrong, for a while. */
  wrongness = 0;

  constructor(random: Random, peek: Peek) {
    this.random = random;
    this.peek = peek;
  }

  /** A field's value, or one that it should not have. */
  twist(value: bigint | number, bits: number): bigint {
    const { random } = this;
    const right = BigInt.asUintN(bits, BigInt(value));
    if (random.below(1000) >= this.wrongness) return right;
    const wrong = random.weighted<() => bigint>([
      [3, () => random.pick(NUMBERS)],
      [2, () => right + BigInt(random.pick([-1, 1, -4096, 4096]))],
      [2, () => right ^ (1n << BigInt(random.below(bits)))],
      [1, () => U64_MAX - random.pick(NUMBERS)],
      [1, () => (BigInt(random.below(2 ** 31)) << 33n) ^ BigInt(random.below(2 ** 31))],
    ])();
    return BigInt.asUintN(bits, wrong);
  }

  u32(value: bigint | number): Uint8Array {
    return new Uint8Array(Uint32Array.of(Number(this.twist(value, 32))).buffer);
  }

  u64(value: bigint | number): Uint8Array {
    return new Uint8Array(BigUint64Array.of(this.twist(value, 64)).buffer);
  }

  /** The first address of pages for a queue: mostly apart from {@link pages} for data. */
  queue(bytes: number): number {
    const count = Math.ceil(bytes / PAGE_SIZE);
    if (this.random.chance(10)) return this.pages(count);
    return (REGIONS[0].page + this.random.below(QUEUE_PAGES - count + 1)) * PAGE_SIZE;
  }

  /** The first address of pages that can be read and written: mostly of the large region, behind the queues. */
  pages(count: number): number {
    const { random } = this;
    const [{ page, pages: all }] = REGIONS;
    if (random.chance(80)) return (page + QUEUE_PAGES + random.below(all - QUEUE_PAGES - count + 1)) * PAGE_SIZE;
    const regions = REGIONS.filter(({ readable, writeable, pages }) => readable && writeable && pages >= count);
    const region = random.pick(regions);
    // At the very end, or anywhere.
    const from = random.chance(20) ? region.pages - count : random.below(region.pages - count + 1);
    return (region.page + from) * PAGE_SIZE;
  }

  /**
   * Where data is: mostly where a driver would have it, else an address of any kind: of what can be read, written, neither;
   * of the device's own memory; of nothing.
   */
  address(): bigint {
    const { random } = this;
    if (random.below(1000) >= 60 + this.wrongness) {
      return BigInt(this.pages(1) + random.pick([0, 0, 0, 0, 4, 512, 0xe00, 0xff8, 0xffc]));
    }
    const inPage = BigInt(random.pick([0, 0, 0, 4, 512, 0xffc, 1, 0xfff]));
    const page = random.weighted<() => number>([
      [20, () => this.pages(1) / PAGE_SIZE],
      [2, () => random.pick(REGIONS).page],
      [2, () => random.pick(REGIONS.map((region) => region.page + region.pages - 1))],
      [1, () => random.pick(REGIONS.map((region) => region.page + region.pages))],
      [1, () => BAR_PAGE + random.below(16)],
      [1, () => BUS_PAGES - 1],
      [1, () => random.below(2 ** 31)],
    ])();
    return (BigInt(page) << 12n) + inPage;
  }
}

/** How a guest's driver uses its device. It knows what it has told it, as far as that was right. */
export interface Script {
  /** Makes up what the driver does next: some operations that belong together. */
  next(): GuestOperation[];
  /** The device was reset, or replaced: what the driver knew is void. */
  forget(): void;
}

export function write(region: number, offset: number, data: Uint8Array): GuestOperation {
  return { kind: "write", region, offset, data };
}

export function bar0(offset: number, data: Uint8Array): GuestOperation {
  return write(REGION.BAR0, offset, data);
}

export function fill(address: number, data: Uint8Array): GuestOperation {
  return { kind: "fill", address, data };
}

/** Lets the device do DMA. */
export function busMaster(): GuestOperation {
  return write(REGION.CONFIG, PCI_COMMAND, Uint8Array.of(6, 0));
}

/** Bytes of an access, of every width and at every offset, at the edges most of all. */
export function anywhere(random: Random, bytes: number): { offset: number; bytes: number } {
  const width = Math.min(bytes, random.pick([1, 2, 4, 4, 4, 8, 8, 3, 16, 64, 300]));
  const last = bytes - width;
  const offset = random.weighted<() => number>([
    [6, () => random.below(Math.min(last, 0x200) + 1)],
    [2, () => random.below(last + 1)],
    [1, () => last],
    [
      3,
      () => Math.min(last, random.pick([0x1000, 0x2000, 0x3000, 0x1004, 0xff8, 0xffc, 0x40, 0x44, 0x48, 0x60, 0x68])),
    ],
  ])();
  return { offset: random.chance(70) ? offset - (offset % Math.min(4, width)) : offset, bytes: width };
}

/** A write that no driver has a reason for. */
export function noise(source: Source, regions: readonly { index: number; bytes: number }[]): RegionWrite {
  const { random } = source;
  const region = random.pick(regions);
  const { offset, bytes } = anywhere(random, region.bytes);
  const data = new Uint8Array(bytes);
  for (let i = 0; i < bytes; i++) data[i] = random.pick([0, 0, 1, 0xff, random.below(256)]);
  return { region: region.index, offset, data };
}
