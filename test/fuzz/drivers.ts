import {
  CONTROL,
  DOORBELL,
  descriptor,
  REGISTER as ENGINE,
  BAR0_BYTES as ENGINE_BAR0_BYTES,
} from "../../src/devices/dma-engine/spec.js";
import { CC, DOORBELLS, REGISTER as NVME, SQE_BYTES } from "../../src/devices/nvme/spec.js";
import { PCI_COMMAND, REGION, REGISTER } from "../../src/devices/pci-model.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import type { Random } from "../../tools/random.js";

/*
 * What a guest's driver does with a device so that it does DMA, well enough that some of it works.
 */

/** A write to a register. */
export interface RegisterWrite {
  readonly region: number;
  readonly offset: number;
  readonly data: Uint8Array;
}

/** What there is to choose from: numbers, and addresses of which most are the client's memory. */
interface Source {
  readonly random: Random;
  address(): bigint;
}

export interface Driver {
  /** Sets the device up, or has it look for work. */
  program(source: Source): RegisterWrite[];
  /** Something for it to do, as it lies in the client's memory. */
  entry(source: Source): Uint8Array;
}

const ENTRIES = 32;

const nvme: Driver = {
  program({ random, address }) {
    const enable = [
      bar0(NVME.CC, u32(0)),
      bar0(NVME.AQA, u32(random.chance(95) ? ((ENTRIES - 1) << 16) | (ENTRIES - 1) : random.below(2 ** 31))),
      bar0(NVME.ASQ, u64(address())),
      bar0(NVME.ACQ, u64(address())),
      bar0(NVME.CC, u32(CC.EN | (6 << CC.IOSQES_SHIFT) | (4 << CC.IOCQES_SHIFT))),
    ];
    const ring = () => bar0(DOORBELLS + 4 * random.pick([0, 0, 0, 1, 2, 3, 4, 5]), u32(random.below(ENTRIES + 1)));
    return [...(random.chance(40) ? enable : []), ring(), ring(), ring()];
  },
  entry({ random, address }) {
    const command = new Uint8Array(SQE_BYTES);
    const view = new DataView(command.buffer);
    view.setUint8(0, random.pick([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 1, 2, 5, 1, random.below(256)]));
    view.setUint8(1, random.pick([0, 0, 0, 0x40, random.below(256)]));
    view.setUint16(2, random.below(65536), true);
    view.setUint32(4, random.pick([0, 1, 1, 1, 0xffffffff]), true);
    const near = () => BigInt.asUintN(64, address() + BigInt(random.pick([0, 0, 0, 4, 512, 0xff8, 1])));
    view.setBigUint64(24, near(), true);
    view.setBigUint64(32, random.chance(70) ? near() : 0n, true);
    view.setUint32(40, random.pick([0, 1, 2, 0x001f0001, 0x001f0002, random.below(2 ** 31)]), true);
    view.setUint32(44, random.pick([0, 1, 0x00010001, 0x00020001, random.below(65536)]), true);
    view.setUint32(48, random.pick([0, 1, 7, 8, 0xffff, random.below(2 ** 31)]), true);
    return command;
  },
};

const dmaEngine: Driver = {
  program({ random, address }) {
    const entries = random.chance(95) ? ENTRIES : random.below(2 ** 31);
    const enable = [
      bar0(ENGINE.CONTROL, u32(0)),
      bar0(ENGINE.RING_BASE, u64(address())),
      bar0(ENGINE.RING_ENTRIES, u32(entries)),
      bar0(ENGINE.COMPLETION_BASE, u64(address())),
      bar0(ENGINE.COMPLETION_ENTRIES, u32(entries)),
      bar0(ENGINE.CONTROL, u32(CONTROL.ENABLE)),
    ];
    const ring = () => ({
      region: REGION.BAR2,
      offset: random.pick([DOORBELL.RING_TAIL, DOORBELL.RING_TAIL, DOORBELL.COMPLETION_HEAD]),
      data: u32(random.below(ENTRIES + 1)),
    });
    return [...(random.chance(40) ? enable : []), ring(), ring(), ring()];
  },
  entry({ random, address }) {
    const place = () => BigInt.asUintN(64, address() + BigInt(random.pick([0, 0, 1, 8, 0xff8])));
    const local = () => BigInt(random.below(2 * ENGINE_BAR0_BYTES));
    const flags = random.chance(90) ? random.below(16) : random.below(256);
    return descriptor.encode({
      opcode: random.pick([1, 1, 2, 2, 0, random.below(256)]),
      flags,
      length: random.pick([1, 8, 100, 4096, 5000, 65536, 0, 2 ** 24, 2 ** 24 + 1]),
      source: (flags & 4) === 0 ? place() : local(),
      destination: (flags & 8) === 0 ? place() : local(),
      tag: random.below(2 ** 31),
    });
  },
};

/** The models whose buffers are named in a table. */
const workload: Driver = {
  program({ random, address }) {
    const used = random.between(0, 4);
    const table = Array.from({ length: used }, () => [u64(address()), u64(BigInt(random.between(1, 3) * PAGE_SIZE))]);
    return [
      bar0(REGISTER.BUFFER_TABLE, new Uint8Array(Buffer.concat(table.flat()))),
      bar0(REGISTER.BUFFERS, u32(used)),
    ];
  },
  entry({ random }) {
    return new Uint8Array(8).fill(random.below(256));
  },
};

/** The driver of a model. */
export function driverOf(model: string): Driver {
  if (model === "nvme") return nvme;
  return model === "dma-engine" ? dmaEngine : workload;
}

/** Lets a device do DMA, or no more. */
export function busMaster(on: boolean): RegisterWrite {
  return { region: REGION.CONFIG, offset: PCI_COMMAND, data: u32(on ? 7 : 0) };
}

function bar0(offset: number, data: Uint8Array): RegisterWrite {
  return { region: REGION.BAR0, offset, data };
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value >>> 0).buffer);
}

function u64(value: bigint): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt.asUintN(64, value)).buffer);
}
