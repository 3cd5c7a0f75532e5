import {
  CHAIN_STATUS,
  CONTROL,
  completion,
  DOORBELL,
  DOORBELL_BYTES,
  descriptor,
  FLAG,
  OPCODE,
  REGISTER,
} from "../../../src/devices/dma-engine/spec.js";
import { REGION } from "../../../src/devices/pci-model.js";
import { PAGE_SIZE } from "../../../src/memory/address.js";
import type { GuestOperation } from "./operation.js";
import { bar0, busMaster, fill, type Script, type Source, write } from "./script.js";

interface Rings {
  readonly ring: number;
  readonly completions: number;
  readonly entries: number;
  readonly records: number;
  tail: number;
  head: number;
  pass: number;
}

/** Bytes of BAR 2. */
export const LOCAL_BYTES = 64 * 1024;

/** A driver as docs/dma-engine.md describes it. */
export class DmaEngineScript implements Script {
  readonly #source: Source;
  #rings: Rings | undefined;
  #tag = 0;

  constructor(source: Source) {
    this.#source = source;
  }

  forget(): void {
    this.#rings = undefined;
  }

  next(): GuestOperation[] {
    const { random } = this.#source;
    const rings = this.#rings;
    if (rings === undefined) return this.#enable();
    return random.weighted<() => GuestOperation[]>([
      [30, () => this.#descriptors(rings)],
      [15, () => this.#take(rings)],
      [3, () => this.#enable()],
      [2, () => [write(REGION.BAR2, random.pick([0, 4, 8]), this.#source.u32(random.below(70)))]],
      [2, () => this.#local()],
      [1, () => this.#reset()],
    ])();
  }

  #enable(): GuestOperation[] {
    const { random } = this.#source;
    const s = this.#source;
    const entries = random.pick([2, 3, 16, 64, 128, 129]);
    const records = random.pick([2, 3, 16, 64, 256]);
    const ring = s.queue(entries * descriptor.size);
    const completions = random.chance(3) ? ring : s.queue(records * completion.size);
    this.#rings = { ring, completions, entries, records, tail: 0, head: 0, pass: 1 };
    return [
      busMaster(),
      bar0(REGISTER.CONTROL, s.u32(0)),
      bar0(REGISTER.RING_BASE, s.u64(ring)),
      bar0(REGISTER.RING_ENTRIES, s.u32(entries)),
      bar0(REGISTER.COMPLETION_BASE, s.u64(completions)),
      bar0(REGISTER.COMPLETION_ENTRIES, s.u32(records)),
      fill(completions, new Uint8Array(Math.min(PAGE_SIZE, records * completion.size))),
      bar0(REGISTER.CONTROL, s.u32(CONTROL.ENABLE)),
    ];
  }

  #descriptors(rings: Rings): GuestOperation[] {
    const { random } = this.#source;
    const operations = Array.from({ length: random.pick([1, 1, 2, 5]) }, () => {
      const at = rings.ring + rings.tail * descriptor.size;
      rings.tail = (rings.tail + 1) % rings.entries;
      return fill(at, this.#descriptor());
    });
    return [...operations, write(REGION.BAR2, DOORBELL.RING_TAIL, this.#source.u32(rings.tail))];
  }

  #descriptor(): Uint8Array {
    const { random } = this.#source;
    const s = this.#source;
    const opcode = random.pick([OPCODE.COPY, OPCODE.COPY, OPCODE.FILL]);
    const flags =
      (random.chance(30) ? FLAG.CHAIN : 0) |
      (random.chance(50) ? FLAG.INTERRUPT : 0) |
      (opcode === OPCODE.COPY && random.chance(20) ? FLAG.SOURCE_LOCAL : 0) |
      (random.chance(20) ? FLAG.DESTINATION_LOCAL : 0);
    const length = random.pick([1, 8, 100, 4096, 5000, 8192, 20_000]);
    const place = (isLocal: boolean) =>
      isLocal ? BigInt(DOORBELL_BYTES + random.below(LOCAL_BYTES - DOORBELL_BYTES)) : s.address();
    return descriptor.encode({
      opcode: Number(s.twist(opcode, 8)),
      flags: Number(s.twist(flags, 8)),
      reserved: Number(s.twist(0, 16)),
      length: Number(s.twist(length, 32)),
      source: s.twist(place((flags & FLAG.SOURCE_LOCAL) !== 0), 64),
      destination: s.twist(place((flags & FLAG.DESTINATION_LOCAL) !== 0), 64),
      tag: ++this.#tag,
      reserved2: Number(s.twist(0, 32)),
    });
  }

  #take(rings: Rings): GuestOperation[] {
    for (let taken = 0; taken < rings.records; taken++) {
      const record = completion.decode(
        this.#source.peek(rings.completions + rings.head * completion.size, completion.size),
      );
      if (record.pass !== rings.pass || record.status > CHAIN_STATUS.DESTINATION_FAULT) break;
      rings.head = (rings.head + 1) % rings.records;
      if (rings.head === 0) rings.pass = 3 - rings.pass;
    }
    return [write(REGION.BAR2, DOORBELL.COMPLETION_HEAD, this.#source.u32(rings.head))];
  }

  #local(): GuestOperation[] {
    const { random } = this.#source;
    const offset = DOORBELL_BYTES + random.below(LOCAL_BYTES - DOORBELL_BYTES - 64);
    return [write(REGION.BAR2, offset, new Uint8Array(random.between(1, 64)).fill(random.below(256)))];
  }

  #reset(): GuestOperation[] {
    this.forget();
    const isFlr = this.#source.random.chance(50);
    return [isFlr ? write(REGION.CONFIG, 0x68, this.#source.u32(0x8000)) : bar0(REGISTER.CONTROL, this.#source.u32(0))];
  }
}
