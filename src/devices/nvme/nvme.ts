import { createHash } from "node:crypto";
import { realpathSync } from "node:fs";
import { type DirtmapError, UsageError } from "../../errors.js";
import type { ShapeFacts } from "../../host/shape.js";
import { struct } from "../../uapi/struct.js";
import { VFIO_PCI_IRQ_INDEX, VFIO_PCI_REGION_INDEX } from "../../uapi/vfio.js";
import type { DeviceContext, DeviceModel, ModelInfo } from "../model.js";
import { PCI_CONFIG_BYTES, PciConfig } from "../pci-config.js";
import { badState, decodeRecords, encodeRecords } from "../records.js";
import { numberOption, type ServableModel, textOption, WITHIN } from "../servable.js";
import { ASYNC_EVENTS_BYTES } from "./async-events.js";
import { Controller, REGISTERS_STATE_BYTES } from "./controller.js";
import { BLOCK_BYTES, Disk, lockedFile } from "./disk.js";
import { FEATURE_DWORDS } from "./features.js";
import { PCI_IDS, SERIAL_BYTES } from "./identity.js";
import { BAR0_BYTES, MSIX_PENDING, MSIX_TABLE, MSIX_TABLE_BYTES, VECTORS } from "./limits.js";
import { LOGS_BYTES } from "./logs.js";
import { QUEUES_BYTES } from "./queues.js";

/** Mass storage, non-volatile memory, NVM Express I/O controller (PCI Code and ID Assignment, 1.9). */
const CLASS_CODE = 0x01_08_02;

const BAR0 = VFIO_PCI_REGION_INDEX.BAR0;
const CONFIG = VFIO_PCI_REGION_INDEX.CONFIG;

export const NVME_INFO: ModelInfo = {
  model: "nvme",
  stateVersion: 1,
  mdev: false,
  regions: [
    { index: BAR0, name: "bar0", bytes: BAR0_BYTES, readable: true, writeable: true },
    { index: CONFIG, name: "config", bytes: PCI_CONFIG_BYTES, readable: true, writeable: true },
  ],
  irqs: [{ index: VFIO_PCI_IRQ_INDEX.MSIX, name: "msix", count: VECTORS }],
  migration: { stopCopy: true, p2p: true, preCopy: true },
  tracking: { tracksInternally: true, tracksThroughContainer: false },
  dmaLogging: {
    // 4 KiB to 1 GiB.
    pageSizes: Array.from({ length: 19 }, (_, i) => 4096 * 2 ** i),
    maxRanges: 16,
    addressWidth: 64,
    readableWhen: "always",
  },
  separatesP2p: false,
};

const TAG = { DISK: 1, CONFIG: 2, MSIX: 3, REGISTERS: 4, QUEUES: 5, EVENTS: 6, FEATURES: 7, LOGS: 8 } as const;

/** What the guest knows its disk by, as it lies in the state. */
const savedDisk = struct("saved_disk", { blocks: "u64", blockBytes: "u32", serial: ["u8", SERIAL_BYTES] });

const RECORD_BYTES: ReadonlyMap<number, number> = new Map([
  [TAG.DISK, savedDisk.size],
  [TAG.CONFIG, PCI_CONFIG_BYTES],
  [TAG.MSIX, MSIX_TABLE_BYTES],
  [TAG.REGISTERS, REGISTERS_STATE_BYTES],
  [TAG.QUEUES, QUEUES_BYTES],
  [TAG.EVENTS, ASYNC_EVENTS_BYTES],
  [TAG.FEATURES, FEATURE_DWORDS * 4],
  [TAG.LOGS, LOGS_BYTES],
]);

export interface NvmeOptions {
  /** The disk's contents: a raw file. */
  readonly file: string;
  /** A folder that the file must lie in, links followed; absent: anywhere. */
  readonly within?: string | undefined;
  /** One of BLOCK_BYTES. */
  readonly blockBytes: number;
  /** Up to 20 printable ASCII characters; absent: made from the file's path. */
  readonly serial?: string | undefined;
  /** Another server's device is to be migrated here: the file is locked when this one first works, not before. */
  readonly incoming: boolean;
}

/**
 * An NVMe 1.4 controller with one namespace on a raw file, for a guest's own nvme driver: up to 16 I/O queue pairs of 1024
 * entries, PRPs, MSI-X.
 *
 * The file is locked from its start (or first work, see `incoming`) until it is quiesced, and again when it goes on: so the
 * file of a device that migrates is free for the destination's when that begins to work.
 */
export class Nvme implements DeviceModel {
  readonly info = NVME_INFO;
  readonly registersDuringDma = true;
  /** Of completions its registers tell nothing; a reset and a shutdown wait for them. */
  readonly postsWrites = true;
  readonly #options: NvmeOptions;
  readonly #disk: Disk;
  readonly #controller: Controller;
  readonly #config = new PciConfig({
    ...PCI_IDS,
    classCode: CLASS_CODE,
    bar0Bytes: BAR0_BYTES,
    msix: { vectors: VECTORS, table: MSIX_TABLE, pending: MSIX_PENDING },
  });
  /** Only memory: who serves the device's interrupts keeps its own table. */
  readonly #msix = new Uint8Array(MSIX_TABLE_BYTES);
  #context: DeviceContext | undefined;
  #serial: string;
  /** The file was locked: a reset may lock it again. */
  #hadFile = false;

  /** @throws UsageError `BAD_DISK_FILE`, `BAD_OPTION` */
  constructor(options: NvmeOptions) {
    if (!BLOCK_BYTES.some((bytes) => bytes === options.blockBytes)) {
      throw badOption(`blocks of ${options.blockBytes} bytes`, `give ${BLOCK_BYTES.join(" or ")}`);
    }
    if (options.serial !== undefined && !isSerial(options.serial)) {
      throw badOption(`'${options.serial}' as serial number`, `give 1 to ${SERIAL_BYTES} printable ASCII characters`);
    }
    this.#options = options;
    this.#disk = new Disk(options.file, options.blockBytes, options);
    this.#serial = options.serial ?? serialOf(options.file);
    const { blocks, blockBytes } = this.#disk;
    this.#controller = new Controller(this.#disk, () => ({ serial: this.#serial, blocks, blockBytes }));
  }

  get busMaster(): boolean {
    return this.#config.busMaster;
  }

  get hasFailed(): boolean {
    return this.#controller.hasFailed;
  }

  showFailure(): void {
    this.#controller.showFailure();
  }

  /** @throws UsageError `DISK_LOCKED` */
  async start(context: DeviceContext): Promise<void> {
    this.#context = context;
    this.#controller.start(context);
    if (!this.#options.incoming && !this.#lock()) throw lockedFile(this.#options.file);
  }

  run(budgetMs: number): number {
    if (!this.#lock()) {
      this.#context?.fail(`${this.#options.file} is locked by another: its device may have been migrated there`);
      return Number.POSITIVE_INFINITY;
    }
    return this.#controller.run(budgetMs);
  }

  quiesce(): void {
    this.#controller.quiesce();
    this.#disk.unlock();
  }

  reset(): void {
    this.#controller.reset();
    this.#config.reset();
    this.#msix.fill(0);
    // Where it is another's by now, the next slice of work finds that out.
    if (this.#hadFile) this.#lock();
  }

  save(): Uint8Array {
    const { blocks, blockBytes } = this.#disk;
    const { queues, events, features, logs } = this.#controller;
    const serial = [...Buffer.from(this.#serial.padEnd(SERIAL_BYTES), "ascii")];
    const data: [number, Uint8Array][] = [
      [TAG.DISK, savedDisk.encode({ blocks: BigInt(blocks), blockBytes, serial })],
      [TAG.CONFIG, this.#config.save()],
      [TAG.MSIX, this.#msix],
      [TAG.REGISTERS, this.#controller.saveRegisters()],
      [TAG.QUEUES, queues.save()],
      [TAG.EVENTS, events.save()],
      [TAG.FEATURES, new Uint8Array(features.save().buffer)],
      [TAG.LOGS, logs.save()],
    ];
    return encodeRecords(data.map(([tag, bytes]) => ({ tag, optional: false, data: bytes })));
  }

  load(state: Uint8Array): void {
    const records = new Map<number, Uint8Array>();
    for (const { tag, data } of decodeRecords(state)) {
      if (records.has(tag) || RECORD_BYTES.get(tag) !== data.byteLength) {
        throw badState(`record ${tag} of ${data.byteLength} bytes is not known, or there twice`);
      }
      records.set(tag, data);
    }
    const take = (tag: number): Uint8Array => {
      const data = records.get(tag);
      if (data === undefined) throw badState(`record ${tag} is missing`);
      return data;
    };
    const { blocks, blockBytes, serial } = savedDisk.decode(take(TAG.DISK));
    if (Number(blocks) !== this.#disk.blocks || blockBytes !== this.#disk.blockBytes) {
      throw badState(
        `its disk has ${blocks} blocks of ${blockBytes} bytes, this one ${this.#disk.blocks} of ${this.#disk.blockBytes}`,
      );
    }
    const text = Buffer.from(serial).toString("latin1").trimEnd();
    if (!isSerial(text)) throw badState("its serial number is no text");
    try {
      this.#loadParts(take);
      this.#serial = text;
    } catch (error) {
      // Half a state is none.
      this.reset();
      throw error;
    }
  }

  regionRead(region: number, offset: number, target: Uint8Array): void {
    if (region === CONFIG) this.#config.read(offset, target);
    else if (offset < MSIX_TABLE) this.#controller.read(offset, target);
    else {
      target.fill(0);
      target.set(this.#msix.subarray(offset - MSIX_TABLE, offset - MSIX_TABLE + target.byteLength));
    }
  }

  regionWrite(region: number, offset: number, source: Uint8Array): void {
    if (region === CONFIG) {
      if (this.#config.write(offset, source)) this.reset();
    } else if (offset < MSIX_TABLE) this.#controller.write(offset, source);
    else if (offset + source.byteLength <= MSIX_TABLE + MSIX_TABLE_BYTES) this.#msix.set(source, offset - MSIX_TABLE);
  }

  /** Not the serial number: the guest's moves with the state. */
  facts(): ShapeFacts {
    const { blocks, blockBytes } = this.#disk;
    return { capacity: { bytes: blocks * blockBytes }, "block size": { bytes: blockBytes } };
  }

  counters(): Record<string, number> {
    const { commands, errors, interrupts, logs } = this.#controller;
    return { commands, errors, interrupts, ...logs.counts };
  }

  [Symbol.dispose](): void {
    this.#disk[Symbol.dispose]();
  }

  #lock(): boolean {
    const locked = this.#disk.lock();
    this.#hadFile ||= locked;
    return locked;
  }

  #loadParts(take: (tag: number) => Uint8Array): void {
    const { queues, events, features, logs } = this.#controller;
    this.#config.load(take(TAG.CONFIG));
    this.#msix.set(take(TAG.MSIX));
    queues.load(take(TAG.QUEUES));
    this.#controller.loadRegisters(take(TAG.REGISTERS));
    events.load(take(TAG.EVENTS));
    features.load(new Uint32Array(take(TAG.FEATURES).slice().buffer));
    logs.load(take(TAG.LOGS));
  }
}

export const NVME: ServableModel = {
  name: "nvme",
  summary: "an NVMe 1.4 controller with a disk in a file, for a guest's own driver; logs its own DMA",
  options: [
    { name: "file", about: "the raw file that holds the disk's contents", kind: "text", required: true },
    WITHIN,
    { name: "block", about: "bytes of a logical block: 512 or 4096", kind: "size", default: 512 },
    { name: "serial", about: "serial number; left out: made from the file's path", kind: "text" },
  ],
  needsEventLoop: false,
  create(options, { incoming }): DeviceModel {
    const file = textOption(options, "file");
    if (file === undefined) throw badOption("no file", "give one: file=PATH");
    return new Nvme({
      file,
      within: textOption(options, "within"),
      blockBytes: numberOption(options, "block"),
      serial: textOption(options, "serial"),
      incoming,
    });
  },
};

function isSerial(text: string): boolean {
  return /^[!-~][ -~]*$/.test(text) && text.length <= SERIAL_BYTES;
}

function serialOf(file: string): string {
  return createHash("sha256").update(realpathSync(file)).digest("hex").slice(0, SERIAL_BYTES);
}

function badOption(what: string, remedy: string): DirtmapError {
  return new UsageError(`nvme: ${what}`, { code: "BAD_OPTION", remedy });
}
