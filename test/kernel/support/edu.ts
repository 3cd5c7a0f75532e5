import type { LinuxVfioDevice } from "../../../src/linux/vfio/device.js";
import type { Iova } from "../../../src/memory/address.js";
import { VFIO_PCI_REGION_INDEX } from "../../../src/uapi/vfio.js";

/*
 * QEMU's `edu` device: a PCI function with a DMA engine that copies between memory and a buffer of its own
 * (docs/specs/edu.rst of QEMU). Its addresses have 28 bits.
 */

const { BAR0, CONFIG } = VFIO_PCI_REGION_INDEX;

/** The PCI command register, in configuration space: answer memory accesses, and do DMA. */
const PCI_COMMAND = 4;
const PCI_COMMAND_MEMORY = 2;
const PCI_COMMAND_MASTER = 4;

/** Registers in BAR 0. */
const IDENTIFICATION = 0x00;
const LIVENESS = 0x04;
const DMA_SOURCE = 0x80;
const DMA_DESTINATION = 0x88;
const DMA_COUNT = 0x90;
const DMA_COMMAND = 0x98;
/** Where the buffer is in the DMA engine's addresses. */
const BUFFER = 0x40000n;
const DMA_START = 1n;
const DMA_TO_MEMORY = 2n;

/** The low byte of the identification. */
export const EDU_ID = 0xed;

export class Edu {
  readonly #device: LinuxVfioDevice;

  constructor(device: LinuxVfioDevice) {
    this.#device = device;
  }

  /** As its driver would at first. */
  async enable(): Promise<void> {
    const [command] = await this.#device.regionRead(CONFIG, PCI_COMMAND, 1);
    await this.#device.regionWrite(
      CONFIG,
      PCI_COMMAND,
      Uint8Array.of(command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER),
    );
  }

  /** 0xRRrr00ed: version and a magic number. */
  async identification(): Promise<number> {
    return new DataView((await this.#device.regionRead(BAR0, IDENTIFICATION, 4)).buffer).getUint32(0, true);
  }

  /** Writes a word, and reads it back: the device inverts it. */
  async invert(word: number): Promise<number> {
    await this.#device.regionWrite(BAR0, LIVENESS, new Uint8Array(Uint32Array.of(word).buffer));
    return new DataView((await this.#device.regionRead(BAR0, LIVENESS, 4)).buffer).getUint32(0, true);
  }

  /** Copies `bytes`, at most 4096, from memory at one IOVA to memory at another, by way of its buffer. */
  async copy(from: Iova, to: Iova, bytes: number): Promise<void> {
    await this.#transfer(from, BUFFER, bytes, DMA_START);
    await this.#transfer(BUFFER, to, bytes, DMA_START | DMA_TO_MEMORY);
  }

  async #transfer(source: bigint, destination: bigint, bytes: number, command: bigint): Promise<void> {
    await this.#set(DMA_SOURCE, source);
    await this.#set(DMA_DESTINATION, destination);
    await this.#set(DMA_COUNT, BigInt(bytes));
    await this.#set(DMA_COMMAND, command);
    for (const until = performance.now() + 10_000; performance.now() < until; ) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      const [state] = await this.#device.regionRead(BAR0, DMA_COMMAND, 8);
      if ((BigInt(state) & DMA_START) === 0n) return;
    }
    throw new Error("the DMA does not end");
  }

  #set(register: number, value: bigint): Promise<void> {
    return this.#device.regionWrite(BAR0, register, new Uint8Array(BigUint64Array.of(value).buffer));
  }
}
