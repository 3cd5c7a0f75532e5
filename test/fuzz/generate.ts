import { PAGE_SIZE, U64_MAX } from "../../src/memory/address.js";
import type { Fields, Given, Struct } from "../../src/uapi/struct.js";
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  vfio_device_feature,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_mig_state,
  vfio_irq_info,
  vfio_irq_set,
  vfio_precopy_info,
  vfio_region_info,
} from "../../src/uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  dirtmap_counters,
  dirtmap_handover,
  dirtmap_write_path,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_REGION_FILE_IO,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  vfio_user_bitmap,
  vfio_user_device_info,
  vfio_user_dma_logging_control,
  vfio_user_dma_logging_report,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
  vfio_user_mig_data,
  vfio_user_region_access,
  vfio_user_region_io_fds,
  vfio_user_write_multi,
  vfio_user_write_multi_entry,
} from "../../src/uapi/vfio-user.js";
import type { Random } from "../../tools/random.js";
import { FILE_BYTES, WATCHED_PAGES } from "./client-files.js";
import { busMaster, type Driver, driverOf, type RegisterWrite } from "./drivers.js";
import { STATE_NUMBERS } from "./mig-arcs.js";
import {
  DESCRIPTORS,
  type DescriptorName,
  type DmaAnswer,
  MAIN,
  type MessageOperation,
  type Operation,
  SLOTS,
  type Slot,
} from "./operation.js";
import { MAX_MESSAGE, type Oracle } from "./oracle.js";

const PAGE = BigInt(PAGE_SIZE);

/** At and around every limit that a field can have. */
const NUMBERS: readonly bigint[] = [
  ...[0n, 1n, 2n, 3n, 4n, 5n, 7n, 8n, 9n, 15n, 16n, 17n, 20n, 23n, 24n, 31n, 32n, 33n, 63n, 64n, 255n, 256n, 257n],
  ...[4095n, 4096n, 4097n, 8192n, 65535n, 65536n, 2n ** 20n - 1n, 2n ** 20n, 2n ** 20n + 1n],
  ...[2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 32n - PAGE, 2n ** 40n, 2n ** 52n, 2n ** 53n - 1n],
  ...[2n ** 53n, 2n ** 63n, U64_MAX - PAGE + 1n, U64_MAX - 2n * PAGE + 1n, U64_MAX - 1n, U64_MAX],
];

const VERSIONS: readonly string[] = [
  "",
  '{"capabilities":{}}\0',
  '{"capabilities":{"max_msg_fds":16}}\0',
  '{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"pgsizes":4096,"write_multiple":true}}\0',
  '{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":100}}\0',
  '{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1}}\0',
  '{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true}}}\0',
  '{"capabilities":{"max_msg_fds":8,"dirtmap":{"protocol":1}}}\0',
  '{"capabilities":{"max_msg_fds":16,"dirtmap":{"protocol":1,"more":[1]}}}\0',
  '{"something":1,"capabilities":{"else":[1]}}\0',
];
const WRONG_VERSIONS: readonly string[] = [
  '{"capabilities":{}}',
  "\0",
  "{}\0\0",
  "[]\0",
  "null\0",
  '{"capabilities":[]}\0',
  '{"capabilities":{"max_msg_fds":-1}}\0',
  '{"capabilities":{"max_msg_fds":1.5}}\0',
  '{"capabilities":{"max_data_xfer_size":0}}\0',
  '{"capabilities":{"max_data_xfer_size":1e300}}\0',
  '{"capabilities":{"pgsizes":"4096"}}\0',
  '{"capabilities":{"twin_socket":true}}\0',
  '{"capabilities":{"dirtmap":{}}}\0',
  '{"capabilities":{"dirtmap":{"protocol":0}}}\0',
  '{"capabilities":{"dirtmap":{"protocol":65536}}}\0',
  '{"capabilities":{"dirtmap":{"protocol":2}}}\0',
  `{"capabilities":${"[".repeat(20_000)}${"]".repeat(20_000)}}\0`,
  '{"capabilities":{"__proto__":{"max_msg_fds":3}}}\0',
  "\xff\xfe\0",
];

/** Entries of a ring that are filled at a time. */
const FILLED_ENTRIES = 32;
/** Commands of which only the answer tells what they have done. */
const ANSWER_TELLS: ReadonlySet<number> = new Set([
  VFIO_USER_COMMAND.DMA_UNMAP,
  VFIO_USER_COMMAND.DEVICE_FEATURE,
  VFIO_USER_COMMAND.MIG_DATA_READ,
  VFIO_USER_COMMAND.MIG_DATA_WRITE,
]);

/**
 * Makes up what a client does next, from what the server must know by then: mostly right, often almost right, sometimes
 * noise. Several operations at once where one alone would lead to nothing.
 */
export class Generator {
  readonly #random: Random;
  readonly #oracle: Oracle;
  readonly #driver: Driver;
  /** Operations that belong together with the last one. */
  #ready: Operation[] = [];
  #on: Slot = MAIN;

  constructor(random: Random, oracle: Oracle) {
    this.#random = random;
    this.#oracle = oracle;
    this.#driver = driverOf(oracle.facts.model);
  }

  next(): Operation {
    this.#ready = this.#ready.filter(
      (operation) => !("on" in operation) || operation.kind === "connect" || this.#has(operation.on),
    );
    return this.#ready.shift() ?? this.#make();
  }

  #has(on: Slot): boolean {
    return this.#oracle.connections.has(on);
  }

  #make(): Operation {
    const random = this.#random;
    if (!this.#has(MAIN) && random.chance(90)) return { kind: "connect", on: MAIN };
    const open = [...this.#oracle.connections.keys()];
    const greeting = open.find((slot) => this.#oracle.connections.get(slot)?.negotiated === false);
    if (greeting !== undefined) return this.#version(greeting);
    const closed = Array.from({ length: SLOTS }, (_, slot) => slot).filter((slot) => !this.#has(slot));
    const rare = random.below(1000);
    if (rare < 6 && closed.length > 0) return { kind: "connect", on: random.pick(closed) };
    if (rare < 10 && open.length > 0) return { kind: "disconnect", on: random.pick(open) };
    if (rare < 12 && open.length > 0) return this.#breakOff(random.pick(open));
    if (rare < 13 && this.#has(MAIN)) return { kind: "intrude" };
    if (rare < 15) return { kind: "answer-dma", how: this.#dmaAnswer() };
    if (open.length === 0) return { kind: "connect", on: random.pick(closed) };
    // For a while the same: what is under way on one connection is waited for before another is used.
    if (!this.#has(this.#on) || random.below(150) === 0) this.#on = random.chance(85) ? MAIN : random.pick(open);
    const on = this.#has(this.#on) ? this.#on : random.pick(open);
    if (rare < 17) return this.#wrongHeader(on);
    return this.#message(on);
  }

  #dmaAnswer(): DmaAnswer {
    const wrong = ["wrong-count", "wrong-id", "wrong-command", "hangs-up"] as const;
    return this.#random.weighted<DmaAnswer>([
      [40, "right"],
      [20, "refused"],
      [4, this.#random.pick(wrong)],
    ]);
  }

  #version(on: Slot): Operation {
    const random = this.#random;
    const version = (major: number, json: string) => {
      const text = Buffer.from(json, "latin1");
      const payload = new Uint8Array(4 + text.byteLength);
      new DataView(payload.buffer).setUint16(0, major, true);
      payload[2] = random.below(3);
      payload.set(text, 4);
      return payload;
    };
    const as = (command: number, payload: Uint8Array) => this.#asMessage(on, command, payload, [], true);
    const { VERSION } = VFIO_USER_COMMAND;
    switch (random.below(30)) {
      case 0:
        return as(VERSION, version(0, random.pick(WRONG_VERSIONS)));
      case 1:
        return as(VERSION, version(random.pick([1, 2, 0xffff]), random.pick(VERSIONS)));
      case 2:
        return as(VERSION, new Uint8Array(random.below(4)));
      case 3:
        return as(random.pick(Object.values(VFIO_USER_COMMAND)), this.#noise(random.below(64)));
      case 4:
        return { kind: "disconnect", on };
      default:
        return as(VERSION, version(0, random.pick(VERSIONS)));
    }
  }

  #breakOff(on: Slot): Operation {
    const random = this.#random;
    const whole = new Uint8Array(16 + random.below(200));
    whole.set(this.#noise(whole.byteLength));
    new DataView(whole.buffer).setUint32(4, whole.byteLength, true);
    new DataView(whole.buffer).setUint32(8, 0, true);
    return {
      kind: "break-off",
      on,
      bytes: whole.subarray(0, random.below(whole.byteLength)),
      descriptors: random.chance(50) ? this.#someDescriptors(random.below(20)) : [],
    };
  }

  #wrongHeader(on: Slot): Operation {
    const random = this.#random;
    const operation = this.#asMessage(
      on,
      random.pick(Object.values(VFIO_USER_COMMAND)),
      this.#noise(random.below(64)),
      [],
      true,
    );
    const descriptors = random.chance(50) ? this.#someDescriptors(1 + random.below(4)) : [];
    if (random.chance(50)) return { ...operation, descriptors, flags: random.between(1, 15) };
    return { ...operation, descriptors, size: random.pick([0, 1, 15, MAX_MESSAGE + 1, 0x7fffffff, 0xffffffff]) };
  }

  /** A command, as it should be, or not quite. */
  #message(on: Slot): Operation {
    const random = this.#random;
    const right = this.#right(on);
    if (right.kind !== "message") return right;
    if (random.chance(70)) return right;
    return this.#mutate(right);
  }

  #mutate(message: MessageOperation): MessageOperation {
    const random = this.#random;
    const payload = message.payload.slice();
    switch (random.below(10)) {
      case 0:
        return { ...message, payload: payload.subarray(0, random.below(payload.byteLength + 1)) };
      case 1: {
        const longer = new Uint8Array(payload.byteLength + random.pick([1, 7, 8, 16, 24, 4096]));
        longer.set(payload);
        return { ...message, payload: longer };
      }
      case 2:
        return { ...message, descriptors: this.#someDescriptors(random.pick([1, 1, 1, 2, 3, 16, 17, 200])) };
      case 3:
        return {
          ...message,
          command: random.pick([0, 14, 19, 255, 0x7fff, 0x8002, 0xffff, ...Object.values(VFIO_USER_COMMAND)]),
        };
      case 4: {
        const silent = ANSWER_TELLS.has(message.command) ? VFIO_USER_F_ERROR : VFIO_USER_F_NO_REPLY;
        const flag = random.pick([silent, silent, VFIO_USER_F_ERROR, 1 << 6, 1 << 31]);
        return { ...message, flags: (message.flags | flag) >>> 0 };
      }
      case 5:
        return { ...message, payload: this.#noise(random.pick([0, 1, 7, 8, 16, 20, 24, 32, 64, 200, 5000])) };
      default:
        break;
    }
    // A field or two at, or next to, a limit.
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    for (let i = random.between(1, 2); i > 0 && payload.byteLength >= 4; i--) {
      const wide = payload.byteLength >= 8 && random.chance(50);
      const at = random.below(Math.floor(Math.min(64, payload.byteLength) / (wide ? 8 : 4))) * (wide ? 8 : 4);
      if (random.chance(30)) {
        const by = random.pick([-1, 1, 8, -8, PAGE_SIZE, -PAGE_SIZE]);
        if (wide) view.setBigUint64(at, BigInt.asUintN(64, view.getBigUint64(at, true) + BigInt(by)), true);
        else view.setUint32(at, view.getUint32(at, true) + by, true);
      } else if (wide) view.setBigUint64(at, random.pick(NUMBERS), true);
      else view.setUint32(at, Number(BigInt.asUintN(32, random.pick(NUMBERS))), true);
    }
    return { ...message, payload };
  }

  #right(on: Slot): Operation {
    const random = this.#random;
    const {
      DMA_MAP,
      DEVICE_GET_INFO,
      DEVICE_GET_REGION_INFO,
      DEVICE_GET_REGION_IO_FDS,
      DEVICE_GET_IRQ_INFO,
      DEVICE_RESET,
      MIG_DATA_READ,
      MIG_DATA_WRITE,
    } = VFIO_USER_COMMAND;
    const make = random.weighted<() => Operation>([
      [12, () => this.#asMessage(on, DMA_MAP, ...this.#map())],
      [8, () => this.#unmap(on)],
      [12, () => this.#regionRead(on)],
      [12, () => this.#regionWrite(on)],
      [4, () => this.#writeMulti(on)],
      [8, () => this.#setIrqs(on)],
      [2, () => this.#structure(on, DEVICE_GET_INFO, vfio_user_device_info, { argsz: this.#argsz(16) })],
      [
        3,
        () =>
          this.#structure(on, DEVICE_GET_REGION_INFO, vfio_region_info, {
            argsz: this.#argsz(32),
            index: random.below(10),
          }),
      ],
      [
        1,
        () =>
          this.#structure(on, DEVICE_GET_REGION_IO_FDS, vfio_user_region_io_fds, {
            argsz: 16,
            index: random.below(10),
          }),
      ],
      [2, () => this.#structure(on, DEVICE_GET_IRQ_INFO, vfio_irq_info, { argsz: 16, index: random.below(6) })],
      [1, () => this.#asMessage(on, DEVICE_RESET, new Uint8Array(0), [])],
      [8, () => this.#state(on)],
      [9, () => this.#logging(on)],
      [4, () => this.#anyFeature(on)],
      [5, () => this.#structure(on, MIG_DATA_READ, vfio_user_mig_data, this.#migDataSize())],
      [5, () => this.#migDataWrite(on, MIG_DATA_WRITE)],
      [
        1,
        () => this.#structure(on, DIRTMAP_COMMAND.COUNTERS, dirtmap_counters, { argsz: random.pick([8, 100, 65536]) }),
      ],
      [1, () => this.#structure(on, DIRTMAP_COMMAND.PRECOPY_INFO, vfio_precopy_info, { argsz: this.#argsz(24) })],
      [3, () => this.#handover(on)],
      [2, () => this.#structure(on, DIRTMAP_COMMAND.WRITE_PATH, dirtmap_write_path, this.#writePath())],
      [5, () => this.#program(on)],
      [2, () => this.#fill()],
    ]);
    return make();
  }

  #map(): [Uint8Array, DescriptorName[]] {
    const random = this.#random;
    const pages = random.pick([1, 1, 1, 2, 3, 8, 16, WATCHED_PAGES]);
    const descriptor = random.weighted<DescriptorName | undefined>([
      [30, random.pick(["memfd", "memfd-2"] as const)],
      [15, "file"],
      [6, random.pick(["memfd-to-read", "file-to-read"] as const)],
      [2, "large-memfd"],
      [5, random.pick(DESCRIPTORS)],
      [30, undefined],
    ]);
    const bytes = descriptor === undefined ? undefined : FILE_BYTES[descriptor];
    const space = Math.floor((bytes ?? WATCHED_PAGES * PAGE_SIZE) / PAGE_SIZE);
    const large = descriptor === "large-memfd" && random.chance(50);
    const size = large ? random.pick([2n ** 30n, 2n ** 32n, 2n ** 32n + PAGE, 2n ** 35n]) : BigInt(pages) * PAGE;
    const offset = large ? 0n : BigInt(random.below(Math.max(1, Math.min(WATCHED_PAGES, space) - pages + 1))) * PAGE;
    const flags = descriptor?.endsWith("-to-read") === true && random.chance(80) ? 1 : random.pick([1, 2, 3, 3, 3, 3]);
    const way = random.weighted([
      [80, 0],
      [8, VFIO_USER_F_DMA_REGION_MMAP],
      [8, VFIO_USER_F_DMA_REGION_FILE_IO],
      [2, VFIO_USER_F_DMA_REGION_MMAP | VFIO_USER_F_DMA_REGION_FILE_IO],
    ]);
    const payload = vfio_user_dma_map.encode({
      argsz: this.#argsz(32),
      flags: flags | way,
      offset,
      address: this.#address(),
      size,
    });
    return [payload, descriptor === undefined ? [] : [descriptor]];
  }

  #writePath() {
    return { argsz: this.#argsz(8), path: this.#random.pick([0, 0, 1, 1, 1, 2]) };
  }

  #handover(on: Slot): Operation {
    const random = this.#random;
    const migration = Buffer.from(random.pick(["a", "a", "a", "1f-b", "", "A", "x".repeat(65)]));
    const argsz = 8 + migration.byteLength + random.pick([0, 0, 0, 0, 1]);
    const head = dirtmap_handover.encode({ argsz, notice: random.pick([1, 1, 1, 2, 2, 0, 3]) });
    return this.#asMessage(on, DIRTMAP_COMMAND.HANDOVER, joined(head, migration), []);
  }

  /** Where a region is put, or is looked for. */
  #address(): bigint {
    const random = this.#random;
    if (random.chance(5)) return random.pick(NUMBERS);
    if (random.chance(5))
      return random.pick([2n ** 40n, 2n ** 51n, 2n ** 52n, 2n ** 60n]) + BigInt(random.below(4)) * PAGE;
    return BigInt(random.below(512)) * PAGE;
  }

  #unmap(on: Slot): Operation {
    const random = this.#random;
    const { DMA_UNMAP } = VFIO_USER_COMMAND;
    const { regions } = this.#oracle;
    if (random.chance(3)) {
      return this.#structure(on, DMA_UNMAP, vfio_user_dma_unmap, { argsz: 24, flags: VFIO_USER_F_DMA_UNMAP_ALL });
    }
    const region = regions.length > 0 && random.chance(85) ? random.pick(regions) : undefined;
    const address = region?.address ?? this.#address();
    const size = region?.size ?? PAGE;
    if (random.chance(70))
      return this.#structure(on, DMA_UNMAP, vfio_user_dma_unmap, { argsz: this.#argsz(24), address, size });
    const pgsize = random.pick([PAGE, PAGE, 65536n, 2n ** 21n, 2n ** 40n]);
    const bytes = (((size + pgsize - 1n) / pgsize + 63n) / 64n) * 8n;
    const given = bytes + BigInt(random.pick([0, 0, 0, 8, 4, -8, 100]));
    const flags = VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP;
    const argsz = Number(BigInt.asUintN(32, 40n + given + BigInt(random.pick([0, 0, 0, -1, 100]))));
    const head = vfio_user_dma_unmap.encode({ argsz, flags, address, size });
    const bitmap = vfio_user_bitmap.encode({ pgsize, size: BigInt.asUintN(64, given) });
    return this.#asMessage(on, DMA_UNMAP, joined(head, bitmap), []);
  }

  /** A region and a place in it, at its edges above all. */
  #place(): { region: number; offset: bigint; count: number } {
    const random = this.#random;
    const { regions } = this.#oracle.facts;
    const there = regions.flatMap(({ bytes }, index) => (bytes > 0 ? [index] : []));
    const region = random.chance(95) ? random.pick(there) : random.below(12);
    const bytes = regions.at(region)?.bytes ?? 4096;
    const count = random.weighted([
      [60, random.pick([1, 2, 4, 4, 4, 8, 8])],
      [10, random.below(64)],
      [3, Math.min(bytes, 4096)],
      [1, Math.min(bytes, 2 ** 20)],
    ]);
    const offset = random.weighted([
      [50, random.below(Math.max(1, bytes - count + 1))],
      [20, Math.floor(random.below(Math.max(1, bytes)) / 4) * 4],
      [10, Math.max(0, bytes - count)],
      [3, bytes],
      [3, Math.max(0, bytes - count + 1)],
      [20, random.below(0x140)],
    ]);
    return { region, offset: BigInt(offset), count };
  }

  #regionRead(on: Slot): Operation {
    return this.#structure(on, VFIO_USER_COMMAND.REGION_READ, vfio_user_region_access, this.#place());
  }

  #regionWrite(on: Slot): Operation {
    const place = this.#place();
    return this.#write(on, place.region, place.offset, this.#value(place.count));
  }

  #write(on: Slot, region: number, offset: bigint, data: Uint8Array): MessageOperation {
    const head = vfio_user_region_access.encode({ region, offset, count: data.byteLength });
    const message = this.#asMessage(on, VFIO_USER_COMMAND.REGION_WRITE, joined(head, data), []);
    return this.#random.chance(10) ? { ...message, flags: VFIO_USER_F_NO_REPLY } : message;
  }

  /** What a register is written with: an address of the client's memory, a small number, a limit, or noise. */
  #value(bytes: number): Uint8Array {
    const random = this.#random;
    const value = this.#noise(bytes);
    if (bytes !== 4 && bytes !== 8) return value;
    const number = random.weighted([
      [30, this.#mapped()],
      [30, BigInt(random.below(8))],
      [20, random.pick(NUMBERS)],
      [20, BigInt(random.below(2 ** 31))],
    ]);
    const view = new DataView(value.buffer, value.byteOffset, value.byteLength);
    if (bytes === 8) view.setBigUint64(0, number, true);
    else view.setUint32(0, Number(BigInt.asUintN(32, number)), true);
    return value;
  }

  /** An address in the client's memory. */
  #mapped(): bigint {
    const { regions } = this.#oracle;
    if (regions.length === 0) return this.#address();
    const { address, size } = this.#random.pick(regions);
    return address + BigInt(this.#random.below(Math.min(WATCHED_PAGES, Number(size / PAGE)))) * PAGE;
  }

  #writeMulti(on: Slot): Operation {
    const count = this.#random.pick([0, 1, 2, 3, 8, 64]);
    const entries = Array.from({ length: count }, () => {
      const place = this.#place();
      const data = this.#random.pick(NUMBERS);
      return vfio_user_write_multi_entry.encode({ ...place, count: Math.min(place.count, 8), data });
    });
    const head = vfio_user_write_multi.encode({ wr_cnt: BigInt(count) });
    return this.#asMessage(on, VFIO_USER_COMMAND.REGION_WRITE_MULTI, joined(head, ...entries), []);
  }

  #setIrqs(on: Slot): Operation {
    const random = this.#random;
    const index = random.pick([0, 1, 2, 2, 2, 3, 4]);
    const there = this.#oracle.facts.irqs[index];
    const start = random.chance(60) ? 0 : random.below(there + 1);
    const count = random.chance(10) ? 0 : random.below(Math.max(1, Math.min(there - start, 20))) + 1;
    const data = random.pick([
      VFIO_IRQ_SET_DATA_EVENTFD,
      VFIO_IRQ_SET_DATA_EVENTFD,
      VFIO_IRQ_SET_DATA_NONE,
      VFIO_IRQ_SET_DATA_BOOL,
    ]);
    const trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
    const action = random.pick([trigger, trigger, trigger, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_UNMASK]);
    const bools = data === VFIO_IRQ_SET_DATA_BOOL ? this.#noise(count) : new Uint8Array(0);
    const head = vfio_irq_set.encode({ argsz: 20 + bools.byteLength, flags: data | action, index, start, count });
    const descriptors: DescriptorName[] =
      data !== VFIO_IRQ_SET_DATA_EVENTFD || random.chance(15)
        ? []
        : Array.from({ length: count }, () => random.pick(["eventfd", "eventfd", "eventfd", "full-eventfd"]));
    return this.#asMessage(on, VFIO_USER_COMMAND.DEVICE_SET_IRQS, joined(head, bools), descriptors);
  }

  #feature(on: Slot, number: number, operation: number, data: Uint8Array, room = data.byteLength): MessageOperation {
    const head = vfio_device_feature.encode({ argsz: 8 + room, flags: number | operation });
    return this.#asMessage(on, VFIO_USER_COMMAND.DEVICE_FEATURE, joined(head, data), []);
  }

  #state(on: Slot): Operation {
    const random = this.#random;
    const { MIG_DEVICE_STATE } = VFIO_DEVICE_FEATURE;
    if (random.chance(20)) return this.#feature(on, MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_GET, new Uint8Array(0), 8);
    // Out of ERROR only a reset leads.
    if (this.#oracle.state === "ERROR" && random.chance(60)) {
      return this.#asMessage(on, VFIO_USER_COMMAND.DEVICE_RESET, new Uint8Array(0), []);
    }
    const device_state = random.chance(97)
      ? random.below(STATE_NUMBERS.length)
      : Number(BigInt.asUintN(32, random.pick(NUMBERS)));
    const data = vfio_device_feature_mig_state.encode({ device_state, data_fd: random.pick([-1, 0, 7]) });
    return this.#feature(on, MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_SET, data);
  }

  #logging(on: Slot): Operation {
    const random = this.#random;
    const { DMA_LOGGING_START, DMA_LOGGING_STOP, DMA_LOGGING_REPORT } = VFIO_DEVICE_FEATURE;
    const { log } = this.#oracle;
    const user = log !== null && this.#has(log.owner) && random.chance(90) ? log.owner : on;
    if (log === null || random.chance(10)) {
      const page_size = random.pick([PAGE, PAGE, PAGE, 65536n, 2n ** 21n, 2n ** 30n, 1n, 512n]);
      const num_ranges = random.weighted([
        [50, random.between(1, 4)],
        [10, 8],
        [4, 9],
        [4, 0],
        [1, 256],
        [1, 257],
      ]);
      const step = page_size < PAGE ? PAGE : page_size;
      const ranges = Array.from({ length: num_ranges }, (_, i) => ({
        iova: random.chance(97) ? BigInt(i * 64 + random.below(40)) * step : random.pick(NUMBERS),
        length: random.chance(97) ? BigInt(random.between(1, 24)) * step : random.pick(NUMBERS),
      }));
      const head = vfio_user_dma_logging_control.encode({ page_size, num_ranges });
      const data = joined(head, ...ranges.map((range) => vfio_device_feature_dma_logging_range.encode(range)));
      return this.#feature(user, DMA_LOGGING_START, VFIO_DEVICE_FEATURE_SET, data);
    }
    if (random.chance(12)) return this.#feature(user, DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_SET, new Uint8Array(0));
    const range = log.ranges === null ? undefined : random.pick(log.ranges);
    const iova = random.chance(70)
      ? (range?.iova ?? 0n)
      : BigInt(random.below(512)) * PAGE + BigInt(random.pick([0, 0, 1]));
    const length = random.weighted([
      [40, range?.length ?? 64n * PAGE],
      [30, BigInt(random.between(0, 600)) * PAGE],
      [5, BigInt(random.below(10_000))],
      [1, 2n ** 38n],
      [1, random.pick(NUMBERS)],
    ]);
    const page_size = random.pick([PAGE, PAGE, PAGE, 65536n, 2n ** 21n]);
    const bits = (length + page_size - 1n) / page_size;
    const bytes = Number(((bits + 63n) / 64n) * 8n);
    const room = bytes > 2 ** 26 ? 24 : 24 + bytes + random.pick([0, 0, 0, 0, 8, -1, -8, 4096]);
    const data = vfio_user_dma_logging_report.encode({ iova, length, page_size });
    return this.#feature(user, DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_GET, data, Math.max(0, room));
  }

  #anyFeature(on: Slot): Operation {
    const random = this.#random;
    const number = random.chance(80) ? random.below(13) : random.below(65536);
    const operation =
      (random.chance(50) ? VFIO_DEVICE_FEATURE_GET : 0) |
      (random.chance(40) ? VFIO_DEVICE_FEATURE_SET : 0) |
      (random.chance(30) ? VFIO_DEVICE_FEATURE_PROBE : 0) |
      (random.chance(5) ? 1 << random.between(19, 30) : 0);
    // Into ERROR it leads by chance too often: a state of noise is left out.
    const data =
      number === VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE
        ? new Uint8Array(8)
        : this.#noise(random.pick([0, 8, 16, 24, 32]));
    return this.#feature(on, number, operation, data);
  }

  #migDataSize(): { argsz: number; size: number } {
    const size = this.#random.pick([0, 1, 100, 4096, 4096, 65536, 2 ** 20, 2 ** 20 + 1]);
    return { argsz: 8 + size + this.#random.pick([0, 0, 0, 8, -1]), size };
  }

  #migDataWrite(on: Slot, command: number): Operation {
    const random = this.#random;
    const { images } = this.#oracle;
    if (this.#oracle.state !== "RESUMING" || images.length === 0 || random.chance(20)) {
      const data = this.#noise(random.pick([0, 1, 8, 100, 4096]));
      return this.#asMessage(
        on,
        command,
        joined(vfio_user_mig_data.encode({ argsz: 8 + data.byteLength, size: data.byteLength }), data),
        [],
      );
    }
    // A whole state, or one in which a byte is wrong.
    const image = random.pick(images).slice();
    if (random.chance(40) && image.byteLength > 0) image[random.below(image.byteLength)] ^= 1 << random.below(8);
    const piece = random.pick([image.byteLength, 4096, 1000, 65536]);
    const parts: Operation[] = [];
    for (let at = 0; at < image.byteLength && parts.length < 64; at += Math.max(1, Math.min(piece, 2 ** 20))) {
      const data = image.subarray(at, at + Math.max(1, Math.min(piece, 2 ** 20)));
      const head = vfio_user_mig_data.encode({ argsz: 8 + data.byteLength, size: data.byteLength });
      parts.push(this.#asMessage(on, command, joined(head, data), []));
    }
    if (random.chance(80)) {
      const data = vfio_device_feature_mig_state.encode({ device_state: random.pick([1, 2]), data_fd: -1 });
      parts.push(this.#feature(on, VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_SET, data));
    }
    this.#ready.push(...parts.slice(1));
    return parts[0] ?? this.#state(on);
  }

  /** What a driver does so that the device does DMA: into what is mapped, or is not. */
  #program(on: Slot): Operation {
    const random = this.#random;
    const writes = this.#driver.program({ random, address: () => this.#reachable() });
    const asOperation = ({ region, offset, data }: RegisterWrite) => this.#write(on, region, BigInt(offset), data);
    this.#ready.push(this.#fill(), this.#fill(), ...writes.map(asOperation));
    return asOperation(busMaster(random.chance(95)));
  }

  /** Work for the device, where it may look for it. */
  #fill(): Operation {
    const random = this.#random;
    const regions = this.#oracle.regions.filter(({ file, writeable }) => file !== undefined && writeable);
    if (regions.length === 0) return { kind: "fill", file: "memfd", offset: 0, bytes: new Uint8Array(0) };
    const { file, size } = random.pick(regions);
    const page = random.below(Math.min(WATCHED_PAGES, Number(size / PAGE)));
    const source = { random, address: () => this.#reachable() };
    const entries = Array.from({ length: FILLED_ENTRIES }, () => this.#driver.entry(source));
    const offset = Number(file?.offset ?? 0n) + page * PAGE_SIZE;
    return { kind: "fill", file: file?.name ?? "memfd", offset, bytes: joined(...entries) };
  }

  /** An address in the client's memory, mostly. */
  #reachable(): bigint {
    return this.#random.chance(85) ? this.#mapped() : this.#address();
  }

  #argsz(least: number): number {
    return this.#random.pick([least, least, least, least, least + 1, 4096, least - 1, 0]);
  }

  #someDescriptors(count: number): DescriptorName[] {
    return Array.from({ length: count }, () => this.#random.pick(DESCRIPTORS));
  }

  #noise(bytes: number): Uint8Array {
    const noise = new Uint8Array(bytes);
    for (let i = 0; i < bytes; i++) noise[i] = this.#random.below(256);
    return noise;
  }

  #structure<Of extends Fields>(
    on: Slot,
    command: number,
    layout: Struct<Of>,
    values: Given<Of>,
    descriptors: readonly DescriptorName[] = [],
    waits = false,
  ): MessageOperation {
    return this.#asMessage(on, command, layout.encode(values), descriptors, waits);
  }

  #asMessage(
    on: Slot,
    command: number,
    payload: Uint8Array,
    descriptors: readonly DescriptorName[],
    waits = false,
  ): MessageOperation {
    const random = this.#random;
    const cuts = random.chance(4) ? [random.between(1, 15 + payload.byteLength)] : [];
    return {
      kind: "message",
      on,
      command,
      flags: 0,
      payload,
      descriptors,
      cuts,
      waits: waits || random.below(200) === 0,
    };
  }
}

function joined(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.byteLength;
  }
  return all;
}
