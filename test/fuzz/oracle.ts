import { PAGE_SIZE, U64_MAX } from "../../src/memory/address.js";
import type { ErrnoName } from "../../src/uapi/errno.js";
import {
  type MigState,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_PCI_REGION_INDEX,
} from "../../src/uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TYPE_MASK,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_IRQ_SET_DATA_TYPE_MASK,
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE,
} from "../../src/uapi/vfio-user.js";
import type { ClientFiles } from "./client-files.js";
import { FILE_BYTES } from "./client-files.js";
import { HEADER_BYTES } from "./connection.js";
import { type DeviceFacts, PCI_IRQS, PCI_REGIONS } from "./facts.js";
import { isSaving, mayChange, STATE_NUMBERS } from "./mig-arcs.js";
import { type DescriptorName, MAIN, type MessageOperation, type Slot } from "./operation.js";

/** Data of a message: VFIO_USER_DEFAULT_DATA_XFER, and what the server takes before it. */
const MAX_DATA = 2 ** 20;
export const MAX_MESSAGE = HEADER_BYTES + MAX_DATA + 4096;

const MAX_BITMAP = 64 * 2 ** 20;
/** LOG_MAX_RANGES of the kernel. */
const LOG_MAX_RANGES = 256;
const MAX_DMA_MAPS = 16384;
const PAGE = BigInt(PAGE_SIZE);

/** States of the device that are kept, to resume it with. */
const MAX_IMAGES = 4;

/** An errno's name, or `none` for success. */
export type Outcome = ErrnoName | "none";

/** What a message must be answered. */
export interface Expected {
  /** Any of these; empty: there is no answer. */
  readonly outcomes: readonly Outcome[];
  /** The server ends the connection after it, answered or not. */
  readonly closes: boolean;
  /** Of a success: bytes that the answer has. */
  readonly bytes?: number;
  /** Of a success: what is wrong with it; undefined: nothing. */
  check?(payload: Uint8Array): string | undefined;
  /** Called with how it was answered, where there was a choice: the next operation waits for it. */
  observe?(outcome: Outcome, payload: Uint8Array): void;
  /** Called when it is done. */
  done?(): void;
}

export interface MappedRegion {
  readonly address: bigint;
  readonly size: bigint;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** Absent: it is reached by messages. */
  readonly file?: { readonly name: DescriptorName; readonly offset: bigint };
}

interface Connected {
  negotiated: boolean;
  /** It named the version of Dirtmap's own commands. */
  speaksDirtmap: boolean;
  /** max_data_xfer_size of the client. */
  maxTransfer: number;
  twin: boolean;
}

interface Custody {
  /** null: gone. */
  mover: Slot | null;
  /** With another device's state. */
  loaded: boolean;
  announced: { readonly gone: boolean; readonly migration: string } | null;
  /** Somebody has left it, with its fate open. */
  isOpen: boolean;
}

interface Log {
  readonly owner: Slot;
  /** `null`: everything that is mapped. */
  readonly ranges: readonly { readonly iova: bigint; readonly length: bigint }[] | null;
  readonly granule: number;
}

const fail = (...outcomes: Outcome[]): Expected => ({ outcomes, closes: false });
const succeed = (bytes: number, more: Partial<Expected> = {}): Expected => ({
  outcomes: ["none"],
  closes: false,
  bytes,
  ...more,
});
const EINVAL = fail("EINVAL");

/**
 * What the server must answer, by the specification and, where it says nothing, by Linux's vfio: written down once more,
 * apart from the server, with the checks in Linux's order. It keeps what a server has to know.
 */
export class Oracle {
  readonly facts: DeviceFacts;
  readonly #files: ClientFiles;
  readonly connections = new Map<Slot, Connected>();
  regions: MappedRegion[] = [];
  /** Their unmapping is under way: until it is answered, the server may still reach them. */
  readonly #leaving = new Set<MappedRegion>();
  /** Who has switched the device's writes to messages. */
  #pathChooser: Slot | null = null;
  /** They were, at some time: a write may be under way when they are switched back. */
  #wasSwitched = false;
  /** A control connection has reached through the client to who knows where. */
  #reachesAll = false;
  /** Of INTx, MSI and MSI-X the one in use. */
  #irqType: number | null = null;
  state: MigState = "RUNNING";
  log: Log | null = null;
  /** Whose the device is while it is not RUNNING. */
  #custody: Custody | null = null;
  /** The log may have ended by itself: a mapping came that it has no room for. */
  #logIsSure = true;
  /** What a RESUMING device was given. */
  #written: Uint8Array[] = [];
  /** Whole states that were read: a device may be resumed with one. */
  readonly images: Uint8Array[] = [];
  #reading: Uint8Array[] | null = null;
  /** What is written may be wrong in a way that only the device can tell. */
  #writtenIsRefused = false;

  constructor(facts: DeviceFacts, files: ClientFiles) {
    this.facts = facts;
    this.#files = files;
  }

  connect(on: Slot): void {
    this.connections.set(on, { negotiated: false, speaksDirtmap: false, maxTransfer: MAX_DATA, twin: false });
  }

  /** The server has noticed that a connection is over: what the client had has gone with it. */
  disconnect(on: Slot): void {
    const speaksDirtmap = this.connections.get(on)?.speaksDirtmap === true;
    this.connections.delete(on);
    if (this.log?.owner === on) this.log = null;
    if (this.#pathChooser === on) this.#pathChooser = null;
    if (this.#custody?.mover === on) this.#leaveMigration(this.#custody, speaksDirtmap);
    if (on !== MAIN) return;
    this.#clearRegions()();
    this.#irqType = null;
  }

  /** Who moved the device out of RUNNING has gone: it runs again, if that is sure to be no second machine. */
  #leaveMigration(custody: Custody, speaksDirtmap: boolean): void {
    custody.mover = null;
    if (custody.announced === null) {
      const isOpen = custody.isOpen || !speaksDirtmap;
      if (this.state === "RESUMING" || (custody.loaded && !isOpen)) {
        this.reset();
        return;
      }
      if (!isOpen && this.state !== "ERROR") {
        this.#moved(null, "RUNNING");
        return;
      }
    }
    custody.isOpen = true;
  }

  /** The device is in another state: `on` has it, until it runs. */
  #moved(on: Slot | null, state: MigState): void {
    this.state = state;
    if (state === "RUNNING") {
      this.#custody = null;
      this.#endStreams();
      return;
    }
    this.#custody = { loaded: false, announced: null, isOpen: false, ...this.#custody, mover: on };
    if (state === "RESUMING") this.#custody = { ...this.#custody, loaded: true, announced: null, isOpen: false };
  }

  /** The server may end this connection at any time. */
  mayLose(on: Slot): void {
    if (this.log?.owner === on) this.#logIsSure = false;
  }

  /** The run has ended, somehow: what the client's memory is to hold is what it holds now. */
  abandon(): void {
    for (const slot of [...this.connections.keys()]) this.disconnect(slot);
  }

  /** What a message must be answered; assumes that it is. */
  expect(message: MessageOperation): Expected {
    const { on, flags, size } = message;
    const type = flags & VFIO_USER_F_TYPE;
    // A reply to nothing, or a type that there is not, or a header that can't be.
    if (type !== 0 || (size !== undefined && (size < HEADER_BYTES || size > MAX_MESSAGE))) {
      return { outcomes: [], closes: true };
    }
    const connected = this.connections.get(on);
    if (connected === undefined) throw new Error(`connection ${on} is not there`);
    const expected = connected.negotiated ? this.#command(message) : this.#version(message, connected);
    const silent = (flags & VFIO_USER_F_NO_REPLY) !== 0;
    return silent ? { ...expected, outcomes: [] } : expected;
  }

  /** The device was reset. */
  reset(): void {
    this.log = null;
    this.#moved(null, "RUNNING");
  }

  /** The device may do DMA by messages. */
  get hasMessages(): boolean {
    if (this.#wasSwitched || this.#reachesAll) return true;
    return [...this.regions, ...this.#leaving].some(({ file }) => file === undefined);
  }

  /** Where the server may have a page read or written by messages. */
  mayAccess(address: bigint, count: bigint, write: boolean): boolean {
    if (this.#reachesAll) return true;
    return [...this.regions, ...this.#leaving].some(
      (r) =>
        r.address <= address &&
        address + count <= r.address + r.size &&
        (r.file === undefined || (write && this.#wasSwitched)) &&
        (write ? r.writeable : r.readable),
    );
  }

  #version({ command, payload }: MessageOperation, connected: Connected): Expected {
    const refuse = (code: Outcome): Expected => ({ outcomes: [code], closes: true });
    if (command !== VFIO_USER_COMMAND.VERSION || payload.byteLength < 4) return refuse("EINVAL");
    if (u16(payload, 0) !== 0) return refuse("EPROTONOSUPPORT");
    const said = capabilitiesOf(payload.subarray(4));
    if (said === null) return refuse("EINVAL");
    // Of another version of Dirtmap's own commands: it learns this server's from the answer, and that is all.
    if (said.dirtmap !== undefined && said.dirtmap !== 1) return { outcomes: ["none"], closes: true };
    connected.negotiated = true;
    connected.speaksDirtmap = said.dirtmap === 1;
    connected.maxTransfer = said.maxTransfer;
    return { outcomes: ["none"], closes: false };
  }

  #command(message: MessageOperation): Expected {
    const { command, on, payload, descriptors } = message;
    const { VERSION, DMA_READ, DMA_WRITE } = VFIO_USER_COMMAND;
    if (on !== MAIN && KNOWN.has(command) && !CONTROL.has(command) && !readsConfig(message)) return fail("EPERM");
    if (on === MAIN && CONTROL_ONLY.has(command)) return fail("EPERM");
    if (OWN.has(command) && this.connections.get(on)?.speaksDirtmap !== true) return fail("EPROTONOSUPPORT");
    switch (command) {
      case VERSION:
        return EINVAL;
      case VFIO_USER_COMMAND.DMA_MAP:
        return this.#map(payload, descriptors);
      case VFIO_USER_COMMAND.DMA_UNMAP:
        return this.#unmap(payload);
      case VFIO_USER_COMMAND.DEVICE_GET_INFO:
        return payload.byteLength < 16 || u32(payload, 0) < 16 ? EINVAL : succeed(16);
      case VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO:
        return this.#regionInfo(payload);
      case VFIO_USER_COMMAND.DEVICE_GET_REGION_IO_FDS:
        return ioFds(payload);
      case VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO:
        return this.#irqInfo(payload);
      case VFIO_USER_COMMAND.DEVICE_SET_IRQS:
        return this.#setIrqs(payload, descriptors);
      case VFIO_USER_COMMAND.REGION_READ:
        return this.#regionRead(payload);
      case VFIO_USER_COMMAND.REGION_WRITE:
        return this.#regionWrite(payload);
      case VFIO_USER_COMMAND.REGION_WRITE_MULTI:
        return this.#regionWriteMulti(payload);
      case VFIO_USER_COMMAND.DEVICE_RESET:
        this.reset();
        return succeed(0);
      case VFIO_USER_COMMAND.DEVICE_FEATURE:
        return this.#feature(payload, on);
      case VFIO_USER_COMMAND.MIG_DATA_READ:
        return this.#migDataRead(payload);
      case VFIO_USER_COMMAND.MIG_DATA_WRITE:
        return this.#migDataWrite(payload);
      case DIRTMAP_COMMAND.COUNTERS:
        return payload.byteLength < 8 || u32(payload, 0) < 8 ? EINVAL : { outcomes: ["none"], closes: false };
      case DIRTMAP_COMMAND.PRECOPY_INFO:
        return this.#precopyInfo(payload);
      case DIRTMAP_COMMAND.HANDOVER:
        return this.#handover(payload, on);
      case DIRTMAP_COMMAND.WRITE_PATH:
        return this.#writePath(payload, on);
      case DIRTMAP_COMMAND.CLIENT_READ:
      case DIRTMAP_COMMAND.CLIENT_WRITE:
      case DIRTMAP_COMMAND.CLIENT_REWRITE:
        return this.#clientMemory(payload);
      case DMA_READ:
      case DMA_WRITE:
        // What a server asks its client, never the other way round.
        return fail("ENOTTY");
      default:
        return fail("ENOTTY");
    }
  }

  #map(payload: Uint8Array, descriptors: readonly DescriptorName[]): Expected {
    if (payload.byteLength < 32 || u32(payload, 0) < 32) return EINVAL;
    const flags = u32(payload, 4);
    const offset = u64(payload, 8);
    const address = u64(payload, 16);
    const size = u64(payload, 24);
    // MMAP and FILE_IO: how a file is reached, so that there has to be one, and not both.
    const ways = flags & 12;
    if ((flags & 3) === 0 || flags > 15 || ways === 12 || (ways !== 0 && descriptors.length === 0)) return EINVAL;
    if (!isRange(address, size) || descriptors.length > 1 || offset % PAGE !== 0n) return EINVAL;
    const name = descriptors.at(0);
    if (name !== undefined && offset + size > BigInt(Number.MAX_SAFE_INTEGER)) return EINVAL;
    if (this.regions.some((r) => address < r.address + r.size && r.address < address + size)) return fail("EEXIST");
    if (this.regions.length >= MAX_DMA_MAPS) return fail("ENOSPC");
    const writeable = (flags & 2) !== 0;
    if (name !== undefined) {
      const bytes = FILE_BYTES[name];
      if (bytes === undefined || BigInt(bytes) < offset + size) return EINVAL;
      if (writeable && name.endsWith("-to-read")) return fail("EACCES");
    }
    const byMessages = name === undefined || this.facts.dma === "messages";
    const region: MappedRegion = {
      address,
      size,
      readable: (flags & 1) !== 0,
      writeable,
      ...(byMessages ? {} : { file: { name, offset } }),
    };
    this.regions.push(region);
    this.#allow(region);
    // Everything is logged, and the log doesn't reach as far: it ends.
    if (this.log?.ranges === null && this.#isBehindLog(region)) this.log = null;
    return succeed(0);
  }

  #unmap(payload: Uint8Array): Expected {
    if (payload.byteLength < 24 || u32(payload, 0) < 24) return EINVAL;
    const argsz = u32(payload, 0);
    const flags = u32(payload, 4);
    const address = u64(payload, 8);
    const size = u64(payload, 16);
    if (flags === VFIO_USER_F_DMA_UNMAP_ALL) {
      if (address !== 0n || size !== 0n) return EINVAL;
      return succeed(24, { done: this.#clearRegions() });
    }
    if (flags !== 0 && flags !== VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP) return EINVAL;
    if (!isRange(address, size)) return EINVAL;
    let room = 0;
    if (flags !== 0) {
      if (this.facts.dmaLogging === null || payload.byteLength < 40) return EINVAL;
      const pageSize = u64(payload, 24);
      const given = u64(payload, 32);
      if (!isPageSize(pageSize)) return EINVAL;
      const bytes = bitmapBytes(size, pageSize);
      if (bytes > MAX_BITMAP || given > MAX_BITMAP || given < bytes || BigInt(argsz) < 40n + given) return EINVAL;
      room = Number(given);
    }
    const first = this.regions
      .filter((r) => address < r.address + r.size && r.address < address + size)
      .sort((a, b) => (a.address < b.address ? -1 : 1))
      .at(0);
    if (first === undefined) return fail("ENOENT");
    if (first.address !== address || first.size !== size) return EINVAL;
    const remove = () => {
      this.regions = this.regions.filter((r) => r !== first);
      return this.#leave(first);
    };
    if (flags === 0) return succeed(24, { done: remove() });
    const report = this.#report();
    if (report.length > 1) {
      const observe = (how: Outcome) => how === "none" && remove()();
      return { outcomes: report, closes: false, bytes: 40 + room, observe };
    }
    return report[0] === "none" ? succeed(40 + room, { done: remove() }) : { outcomes: report, closes: false };
  }

  #regionInfo(payload: Uint8Array): Expected {
    if (payload.byteLength < 32 || u32(payload, 0) < 32) return EINVAL;
    const index = u32(payload, 8);
    if (index >= PCI_REGIONS) return EINVAL;
    const { bytes } = this.facts.regions[index];
    return {
      outcomes: ["none"],
      closes: false,
      check: (answer) => {
        if (answer.byteLength < 32) return `${answer.byteLength} bytes came`;
        return u64(answer, 16) === BigInt(bytes) ? undefined : `the region has ${u64(answer, 16)} bytes`;
      },
    };
  }

  #irqInfo(payload: Uint8Array): Expected {
    if (payload.byteLength < 16 || u32(payload, 0) < 16) return EINVAL;
    const index = u32(payload, 8);
    if (index >= PCI_IRQS) return EINVAL;
    const count = this.facts.irqs[index];
    const check = (answer: Uint8Array) =>
      u32(answer, 12) === count ? undefined : `there are ${u32(answer, 12)} instead of ${count}`;
    return succeed(16, { check });
  }

  /** vfio_set_irqs_validate_and_prepare(), then vfio_pci_set_irqs_ioctl(). */
  #setIrqs(payload: Uint8Array, descriptors: readonly DescriptorName[]): Expected {
    if (payload.byteLength < 20 || u32(payload, 0) < 20) return EINVAL;
    const [argsz, flags, index, start, count] = [0, 4, 8, 12, 16].map((at) => u32(payload, at));
    const data = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    const action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if (
      flags >= 64 ||
      ![VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_ACTION_TRIGGER].includes(action)
    )
      return EINVAL;
    if (index >= PCI_IRQS) return EINVAL;
    const there = this.facts.irqs[index];
    if (start >= there || start + count > there) return EINVAL;
    const isMsiOrIntx = index <= 2;
    const triggers = action === VFIO_IRQ_SET_ACTION_TRIGGER;
    if (data === VFIO_IRQ_SET_DATA_EVENTFD) {
      if (count === 0 || (descriptors.length !== 0 && descriptors.length !== count)) return EINVAL;
      if (!descriptors.every((name) => name.endsWith("eventfd"))) return EINVAL;
      if (action === VFIO_IRQ_SET_ACTION_UNMASK && index === 0) return this.#irqType === 0 ? succeed(0) : EINVAL;
      if (!triggers) return fail("ENOTTY");
      if (isMsiOrIntx) {
        if (this.#irqType !== null && this.#irqType !== index) return EINVAL;
        this.#irqType = index;
      }
      return succeed(0);
    }
    if (descriptors.length > 0) return EINVAL;
    if (data !== VFIO_IRQ_SET_DATA_NONE && data !== VFIO_IRQ_SET_DATA_BOOL) return EINVAL;
    if (count === 0) {
      if (data !== VFIO_IRQ_SET_DATA_NONE || !triggers || start !== 0) return EINVAL;
      if (this.#irqType === index) this.#irqType = null;
      return succeed(0);
    }
    if (data === VFIO_IRQ_SET_DATA_BOOL && (argsz - 20 < count || payload.byteLength - 20 < count)) return EINVAL;
    if (!isMsiOrIntx && !triggers) return fail("ENOTTY");
    return isMsiOrIntx && this.#irqType !== index ? EINVAL : succeed(0);
  }

  /** @returns undefined for what is outside of the region */
  #access(payload: Uint8Array, way: "readable" | "writeable"): { count: number } | undefined {
    if (payload.byteLength < 16) return undefined;
    const offset = u64(payload, 0);
    const region = this.facts.regions.at(u32(payload, 8));
    const count = u32(payload, 12);
    if (region === undefined || u32(payload, 8) >= PCI_REGIONS || region.bytes === 0 || !region[way]) return undefined;
    return offset + BigInt(count) <= BigInt(region.bytes) && count <= MAX_DATA ? { count } : undefined;
  }

  #regionRead(payload: Uint8Array): Expected {
    const access = this.#access(payload, "readable");
    return access === undefined ? EINVAL : succeed(16 + access.count);
  }

  #regionWrite(payload: Uint8Array): Expected {
    const access = this.#access(payload, "writeable");
    return access === undefined || payload.byteLength !== 16 + access.count ? EINVAL : succeed(16);
  }

  #regionWriteMulti(payload: Uint8Array): Expected {
    if (payload.byteLength < 8) return EINVAL;
    const count = u64(payload, 0);
    if (count * 24n !== BigInt(payload.byteLength - 8)) return EINVAL;
    for (let at = 8; at < payload.byteLength; at += 24) {
      const access = this.#access(payload.subarray(at, at + 16), "writeable");
      if (access === undefined || access.count > 8) return EINVAL;
    }
    return succeed(8);
  }

  /** vfio_ioctl_device_feature() and vfio_check_feature(), with their order. */
  #feature(payload: Uint8Array, on: Slot): Expected {
    if (payload.byteLength < 8 || u32(payload, 0) < 8) return EINVAL;
    const argsz = u32(payload, 0);
    const flags = u32(payload, 4);
    const wanted = flags & (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET);
    const probes = (flags & VFIO_DEVICE_FEATURE_PROBE) !== 0;
    if (flags >= 2 ** 19) return EINVAL;
    if (!probes && wanted === (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET)) return EINVAL;
    const feature = this.#featureOf(flags & 0xffff, on);
    if (feature === undefined) return fail("ENOTTY");
    if ((wanted & ~feature.operations) !== 0) return EINVAL;
    if (probes) return succeed(payload.byteLength);
    if (wanted === 0 || argsz - 8 < feature.minBytes) return EINVAL;
    return feature.use(payload.subarray(8), argsz - 8, wanted);
  }

  #featureOf(
    number: number,
    on: Slot,
  ):
    | { operations: number; minBytes: number; use: (data: Uint8Array, room: number, wanted: number) => Expected }
    | undefined {
    const { migration, dmaLogging } = this.facts;
    const get = VFIO_DEVICE_FEATURE_GET;
    const set = VFIO_DEVICE_FEATURE_SET;
    if (migration !== null) {
      const { MIGRATION, MIG_DEVICE_STATE, MIG_DATA_SIZE, MIG_PRECOPY_INFOv2 } = VFIO_DEVICE_FEATURE;
      if (number === MIGRATION) return { operations: get, minBytes: 8, use: () => succeed(16) };
      if (number === MIG_DATA_SIZE) return { operations: get, minBytes: 8, use: () => succeed(16) };
      if (number === MIG_PRECOPY_INFOv2 && migration.preCopy) {
        return { operations: set, minBytes: 0, use: (data) => succeed(8 + data.byteLength) };
      }
      if (number === MIG_DEVICE_STATE) {
        const use = (data: Uint8Array, _room: number, wanted: number) =>
          wanted === get ? this.#getState() : this.#setState(data, on);
        return { operations: get | set, minBytes: 8, use };
      }
    }
    if (dmaLogging !== null) {
      const { DMA_LOGGING_START, DMA_LOGGING_STOP, DMA_LOGGING_REPORT } = VFIO_DEVICE_FEATURE;
      if (number === DMA_LOGGING_START) {
        return { operations: set, minBytes: 16, use: (data) => this.#startLog(data, on) };
      }
      if (number === DMA_LOGGING_STOP) {
        const use = (data: Uint8Array) => {
          if (this.log !== null && this.log.owner !== on)
            return this.#logIsSure ? fail("EBUSY") : fail("EBUSY", "none");
          this.log = null;
          return succeed(8 + data.byteLength);
        };
        return { operations: set, minBytes: 0, use };
      }
      if (number === DMA_LOGGING_REPORT) {
        return { operations: get, minBytes: 24, use: (data, room) => this.#reportLog(data, room, on) };
      }
    }
    return undefined;
  }

  #getState(): Expected {
    const expected = this.state;
    const check = (answer: Uint8Array) => {
      const found = STATE_NUMBERS.at(u32(answer, 8));
      return found === expected ? undefined : `the device is in ${found} instead of ${expected}`;
    };
    return succeed(16, { check });
  }

  #setState(data: Uint8Array, on: Slot): Expected {
    const { migration } = this.facts;
    if (data.byteLength < 8 || migration === null) return EINVAL;
    const next = STATE_NUMBERS.at(u32(data, 0));
    if (u32(data, 0) >= STATE_NUMBERS.length || next === undefined) return EINVAL;
    const from = this.state;
    const { mover, announced } = this.#custody ?? { mover: null, announced: null };
    if (mover !== null && mover !== on) return fail("EBUSY");
    if (announced?.gone === true && !["ERROR", "STOP", "STOP_COPY", "RESUMING"].includes(next)) return fail("EPERM");
    if (!mayChange(from, next, migration)) return EINVAL;
    if (from === next) return succeed(8 + data.byteLength);
    const go = () => {
      this.#moved(on, next);
      if (!(isSaving(from) && isSaving(next))) this.#endStreams();
      // What is saved from here on is a whole state: in pre-copy its end is not known here.
      if (next === "STOP_COPY" && !isSaving(from)) this.#reading = [];
    };
    if (from !== "RESUMING") {
      go();
      return succeed(8 + data.byteLength);
    }
    // Leaving RESUMING loads what was written: what is wrong with it is known to the device alone.
    const outcomes: Outcome[] = this.#resumesWithImage()
      ? ["none"]
      : this.#written.length === 0
        ? ["EINVAL"]
        : ["none", "EINVAL"];
    return {
      outcomes,
      closes: false,
      bytes: 8 + data.byteLength,
      observe: (how) => {
        if (how === "none") go();
        else {
          this.#moved(on, "ERROR");
          this.#endStreams();
        }
      },
    };
  }

  #startLog(data: Uint8Array, on: Slot): Expected {
    const limits = this.facts.dmaLogging;
    if (data.byteLength < 16 || limits === null) return EINVAL;
    const pageSize = u64(data, 0);
    const count = u32(data, 8);
    if (count > LOG_MAX_RANGES) return fail("E2BIG");
    if (data.byteLength < 16 + count * 16) return EINVAL;
    if (pageSize === 0n || (pageSize & (pageSize - 1n)) !== 0n || pageSize > 2n ** 52n) return EINVAL;
    const ranges = Array.from({ length: count }, (_, i) => ({
      iova: u64(data, 16 + i * 16),
      length: u64(data, 24 + i * 16),
    })).sort((a, b) => (a.iova < b.iova ? -1 : 1));
    for (const { iova, length } of ranges) {
      if (length === 0n || iova % pageSize !== 0n || length % pageSize !== 0n) return EINVAL;
      if (iova + length > U64_MAX) return fail("EOVERFLOW");
    }
    if (ranges.some(({ iova }, i) => i > 0 && iova < ranges[i - 1].iova + ranges[i - 1].length)) return EINVAL;
    const start = (how: Outcome) => {
      if (how !== "none") return;
      const granule = limits.pageSizes.filter((size) => BigInt(size) <= pageSize).at(-1) ?? limits.pageSizes[0];
      this.log = { owner: on, ranges: count === 0 ? null : ranges, granule };
      this.#logIsSure = true;
    };
    const reply = 8 + data.byteLength;
    if (this.log !== null && this.#logIsSure) return EINVAL;
    // A log that may have ended.
    if (this.log !== null) {
      return {
        outcomes: ["none", "EINVAL", "E2BIG", "EOPNOTSUPP", "ENOMEM"],
        closes: false,
        bytes: reply,
        observe: start,
      };
    }
    if (count === 0) {
      if (this.regions.some((region) => this.#isBehindLog(region))) return fail("EOPNOTSUPP");
      start("none");
      return succeed(reply);
    }
    if (count > limits.maxRanges) return fail("E2BIG");
    const last = ranges[count - 1];
    if (last.iova + last.length > 1n << BigInt(limits.addressWidth)) return fail("EOPNOTSUPP");
    const total = ranges.reduce((sum, { length }) => sum + length, 0n);
    // Where the log's memory ends is the device's own affair; up to this it has to have enough.
    if (total > 2n ** 42n) return { outcomes: ["none", "ENOMEM"], closes: false, bytes: reply, observe: start };
    start("none");
    return succeed(reply);
  }

  /** A region that ends behind the addresses that the device's log can cover. */
  #isBehindLog({ address, size }: Pick<MappedRegion, "address" | "size">): boolean {
    return address + size > 1n << BigInt(this.facts.dmaLogging?.addressWidth ?? 64);
  }

  #reportLog(data: Uint8Array, room: number, on: Slot): Expected {
    if (data.byteLength < 24) return EINVAL;
    const iova = u64(data, 0);
    const length = u64(data, 8);
    const pageSize = u64(data, 16);
    if (!isPageSize(pageSize)) return EINVAL;
    if (iova + length > U64_MAX) return fail("EOVERFLOW");
    const bytes = bitmapBytes(length, pageSize);
    if (bytes > MAX_BITMAP || BigInt(room) < 24n + bytes) return EINVAL;
    const outcomes = this.#report(on);
    const { log } = this;
    const check = (answer: Uint8Array) => {
      if (log === null || log.ranges === null || answer.byteLength > 65536) return undefined;
      return bitOutside(answer.subarray(32), { iova, pageSize, granule: BigInt(log.granule), ranges: log.ranges });
    };
    return { outcomes, closes: false, bytes: 32 + Number(bytes), check };
  }

  /** How a report is answered by the state of the log. */
  #report(on: Slot = MAIN): Outcome[] {
    if (this.log === null) return ["EINVAL"];
    const outcome: Outcome = this.log.owner === on ? "none" : "EBUSY";
    return this.#logIsSure ? [outcome] : [outcome, "EINVAL"];
  }

  #migDataRead(payload: Uint8Array): Expected {
    if (payload.byteLength < 8 || u32(payload, 0) < 8) return EINVAL;
    const size = u32(payload, 4);
    if (size > MAX_DATA || u32(payload, 0) - 8 < size || !isSaving(this.state)) return EINVAL;
    return {
      outcomes: ["none"],
      closes: false,
      check: (answer) => {
        // As long as what was asked for, whatever came.
        if (answer.byteLength !== 8 + size) return `${answer.byteLength} bytes came`;
        return u32(answer, 4) <= size ? undefined : `${u32(answer, 4)} bytes are said to have come`;
      },
      ...(this.#reading === null ? {} : { observe: (_how, answer) => this.#read(answer, size) }),
    };
  }

  #read(answer: Uint8Array, size: number): void {
    if (this.#reading === null || answer.byteLength < 8) return;
    const came = u32(answer, 4);
    this.#reading.push(answer.slice(8, 8 + came));
    if (came === size) return;
    this.images.push(new Uint8Array(Buffer.concat(this.#reading)));
    if (this.images.length > MAX_IMAGES) this.images.shift();
    this.#reading = null;
  }

  #migDataWrite(payload: Uint8Array): Expected {
    if (payload.byteLength < 8 || u32(payload, 0) < 8) return EINVAL;
    const size = u32(payload, 4);
    if (size > MAX_DATA || payload.byteLength !== 8 + size || this.state !== "RESUMING") return EINVAL;
    if (this.#writtenIsRefused) return EINVAL;
    this.#written.push(payload.slice(8));
    if (this.#resumesWithPartOfImage()) return succeed(0);
    return {
      outcomes: ["none", "EINVAL"],
      closes: false,
      bytes: 0,
      observe: (how) => {
        // It stays wrong.
        if (how === "EINVAL") this.#writtenIsRefused = true;
      },
    };
  }

  #writePath(payload: Uint8Array, on: Slot): Expected {
    if (payload.byteLength < 8 || u32(payload, 0) < 8 || u32(payload, 4) > 1) return EINVAL;
    if (this.#pathChooser !== null && this.#pathChooser !== on) return fail("EBUSY");
    const byMessages = u32(payload, 4) === 1;
    this.#pathChooser = byMessages ? on : null;
    this.#wasSwitched ||= byMessages;
    return succeed(8);
  }

  /** What is asked of the client may be anywhere; its answers, and whether the device runs, decide. */
  #clientMemory(payload: Uint8Array): Expected {
    if (payload.byteLength < 16) return EINVAL;
    const [address, count] = [u64(payload, 0), u64(payload, 8)];
    if (count > BigInt(MAX_DATA) || address + count > U64_MAX) return EINVAL;
    this.#reachesAll = true;
    return { outcomes: ["none", "EINVAL", "EBUSY", "EFAULT", "EIO", "ENOTCONN"], closes: false };
  }

  #handover(payload: Uint8Array, on: Slot): Expected {
    if (payload.byteLength < 8 || u32(payload, 0) !== payload.byteLength) return EINVAL;
    const notice = u32(payload, 4);
    const migration = Buffer.from(payload.subarray(8)).toString("latin1");
    if (notice < 1 || notice > 2 || !/^[0-9a-z-]{1,64}$/.test(migration)) return EINVAL;
    const custody = this.#custody;
    if (custody === null || custody.mover !== on) return EINVAL;
    const before = custody.announced;
    const gone = notice === 2;
    if (gone ? before?.migration !== migration : before?.gone === true) return EINVAL;
    custody.announced = { gone, migration };
    return succeed(8);
  }

  #precopyInfo(payload: Uint8Array): Expected {
    if (payload.byteLength < 24 || u32(payload, 0) < 24) return EINVAL;
    return this.state === "PRE_COPY" || this.state === "PRE_COPY_P2P" ? succeed(24) : EINVAL;
  }

  #resumesWithImage(): boolean {
    const written = Buffer.concat(this.#written);
    return this.images.some((image) => Buffer.compare(image, written) === 0);
  }

  #resumesWithPartOfImage(): boolean {
    const written = Buffer.concat(this.#written);
    return this.images.some((image) => Buffer.compare(image.subarray(0, written.byteLength), written) === 0);
  }

  #endStreams(): void {
    this.#written = [];
    this.#writtenIsRefused = false;
    this.#reading = null;
  }

  /** Returns what there is to do when it is done. */
  #clearRegions(): () => void {
    const done = this.regions.map((region) => this.#leave(region));
    this.regions = [];
    return () => {
      for (const each of done) each();
    };
  }

  /** Returns what there is to do when it is done. */
  #leave(region: MappedRegion): () => void {
    this.#leaving.add(region);
    return () => {
      this.#leaving.delete(region);
      this.#forbid(region);
    };
  }

  #allow({ file, writeable, size }: MappedRegion): void {
    if (file !== undefined && writeable) this.#files.allow(file.name, Number(file.offset / PAGE), Number(size / PAGE));
  }

  #forbid({ file, writeable, size }: MappedRegion): void {
    if (file !== undefined && writeable) this.#files.forbid(file.name, Number(file.offset / PAGE), Number(size / PAGE));
  }
}

const KNOWN: ReadonlySet<number> = new Set(Object.values(VFIO_USER_COMMAND));
const OWN: ReadonlySet<number> = new Set(Object.values(DIRTMAP_COMMAND));
const CONTROL_ONLY: ReadonlySet<number> = new Set([
  DIRTMAP_COMMAND.WRITE_PATH,
  DIRTMAP_COMMAND.CLIENT_READ,
  DIRTMAP_COMMAND.CLIENT_WRITE,
  DIRTMAP_COMMAND.CLIENT_REWRITE,
]);
const CONTROL: ReadonlySet<number> = new Set([
  VFIO_USER_COMMAND.DEVICE_GET_INFO,
  VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO,
  VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO,
  VFIO_USER_COMMAND.DEVICE_RESET,
  VFIO_USER_COMMAND.DEVICE_FEATURE,
  VFIO_USER_COMMAND.MIG_DATA_READ,
  VFIO_USER_COMMAND.MIG_DATA_WRITE,
]);

/** A read of the configuration space: all that control connections may do with regions. */
function readsConfig({ command, payload }: MessageOperation): boolean {
  return (
    command === VFIO_USER_COMMAND.REGION_READ &&
    payload.byteLength >= 16 &&
    u32(payload, 8) === VFIO_PCI_REGION_INDEX.CONFIG
  );
}

function ioFds(payload: Uint8Array): Expected {
  if (payload.byteLength < 16) return EINVAL;
  const [argsz, flags, index, count] = [0, 4, 8, 12].map((at) => u32(payload, at));
  return index >= PCI_REGIONS || argsz < 16 || flags !== 0 || count !== 0 ? EINVAL : fail("EOPNOTSUPP");
}

/** Whole pages that end below 2^64. */
function isRange(address: bigint, size: bigint): boolean {
  return size !== 0n && address + size <= U64_MAX && address % PAGE === 0n && size % PAGE === 0n;
}

function isPageSize(size: bigint): boolean {
  return size >= PAGE && (size & (size - 1n)) === 0n && size <= 2n ** 52n;
}

function bitmapBytes(length: bigint, pageSize: bigint): bigint {
  return (((length + pageSize - 1n) / pageSize + 63n) / 64n) * 8n;
}

/** A bit that is set although nothing of its page is logged. */
function bitOutside(
  bits: Uint8Array,
  log: {
    iova: bigint;
    pageSize: bigint;
    granule: bigint;
    ranges: readonly { readonly iova: bigint; readonly length: bigint }[];
  },
): string | undefined {
  for (const [index, byte] of bits.entries()) {
    for (let bit = 0; byte >> bit !== 0; bit++) {
      if (((byte >> bit) & 1) === 0) continue;
      const first = log.iova + BigInt(index * 8 + bit) * log.pageSize;
      const isLogged = log.ranges.some(({ iova, length }) => {
        const start = iova - (iova % log.granule);
        const end = iova + length + log.granule - 1n;
        return start < first + log.pageSize && first < end - (end % log.granule);
      });
      if (!isLogged) return `the page at 0x${first.toString(16)} is reported, and is not logged`;
    }
  }
  return undefined;
}

/** What a client says of itself; null: what the server can't take. */
function capabilitiesOf(json: Uint8Array): { maxTransfer: number; dirtmap?: number } | null {
  if (json.byteLength === 0) return { maxTransfer: MAX_DATA };
  if (json.byteLength > 65536 || json[json.byteLength - 1] !== 0) return null;
  let said: unknown;
  try {
    said = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json.subarray(0, -1)));
  } catch {
    return null;
  }
  if (!isObject(said)) return null;
  const { capabilities = {} } = said;
  if (!isObject(capabilities)) return null;
  const { max_msg_fds, max_data_xfer_size, max_dma_maps, pgsizes, twin_socket, write_multiple, dirtmap } = capabilities;
  const isCount = (value: unknown, least: number) =>
    value === undefined || (Number.isSafeInteger(value) && (value as number) >= least);
  if (!isCount(max_msg_fds, 0)) return null;
  if (![max_data_xfer_size, max_dma_maps, pgsizes].every((value) => isCount(value, 1))) return null;
  if (write_multiple !== undefined && typeof write_multiple !== "boolean") return null;
  if (twin_socket !== undefined) {
    if (!isObject(twin_socket)) return null;
    if (twin_socket.supported !== undefined && typeof twin_socket.supported !== "boolean") return null;
  }
  const maxTransfer = (max_data_xfer_size as number | undefined) ?? MAX_DATA;
  if (dirtmap === undefined) return { maxTransfer };
  if (!isObject(dirtmap) || !isCount(dirtmap.protocol ?? 0, 1) || (dirtmap.protocol as number) > 65535) return null;
  return { maxTransfer, dirtmap: dirtmap.protocol as number };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function u16(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint16(at, true);
}

function u32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

function u64(bytes: Uint8Array, at: number): bigint {
  return new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true);
}
