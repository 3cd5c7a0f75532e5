import {
  CHAIN_STATUS,
  CONTROL,
  completion,
  DOORBELL,
  descriptor,
  REGISTER as ENGINE,
  OPCODE,
} from "../../../src/devices/dma-engine/spec.js";
import {
  ADMIN,
  CC,
  CNS,
  CQE_BYTES,
  CSTS,
  DOORBELLS,
  IO,
  NSID,
  NSSR_RESET,
  REGISTER as NVME,
  SQE_BYTES,
} from "../../../src/devices/nvme/spec.js";
import { PCI_COMMAND, REGION, REGISTER, STATUS } from "../../../src/devices/pci-model.js";
import { PAGE_SIZE } from "../../../src/memory/address.js";
import { REGIONS } from "./layout.js";
import type { Side } from "./side.js";

/*
 * What a guest does with a device that it no longer trusts: it resets it, and sees whether it works.
 */

const BASE = REGIONS[0].page * PAGE_SIZE;
const [RING, RECORDS, DATA, COPY] = [0, 1, 2, 3].map((page) => BASE + page * PAGE_SIZE);

/** Slices that a command takes at most. */
const SLICES = 200;
/** Looks at a device whose work takes turns of the event loop, a millisecond each. */
const LOOKS = 20_000;

/** The ways in which a guest or its VMM resets a device. */
const RESETS: Readonly<Record<string, readonly ((side: Side) => void | Promise<void>)[]>> = {
  nvme: [
    (side) => set(side, NVME.CC, 0),
    (side) => set(side, NVME.NSSR, NSSR_RESET),
    (side) => set(side, 0x68, 0x8000, REGION.CONFIG),
    (side) => side.reset(),
  ],
  "dma-engine": [
    (side) => set(side, ENGINE.CONTROL, 0),
    (side) => set(side, 0x68, 0x8000, REGION.CONFIG),
    (side) => side.reset(),
  ],
};
const OTHER_RESETS = [(side: Side) => set(side, REGISTER.STATUS, STATUS.RESET), (side: Side) => side.reset()];

/** Resets the device, and has it do something. Returns what is wrong with it, undefined where nothing is. */
export async function revive(side: Side, how: number, turn: () => Promise<void>): Promise<string | undefined> {
  const { model } = side.device.model.info;
  const resets = RESETS[model] ?? OTHER_RESETS;
  side.calm();
  await resets[how % resets.length](side);
  for (let region = 0; region < REGIONS.length; region++) side.map(region);
  // D0, where it may be asleep: of a function that has power management.
  if (RESETS[model] !== undefined) set(side, 0x44, 0, REGION.CONFIG);
  set(side, PCI_COMMAND, 6, REGION.CONFIG);
  if (model === "nvme") return useNvme(side);
  return model === "dma-engine" ? useEngine(side) : useWorkload(side, turn);
}

function useNvme(side: Side): string | undefined {
  side.fill(RING, new Uint8Array(2 * PAGE_SIZE));
  set(side, NVME.AQA, (15 << 16) | 15);
  set64(side, NVME.ASQ, RING);
  set64(side, NVME.ACQ, RECORDS);
  set(side, NVME.CC, CC.EN | (6 << CC.IOSQES_SHIFT) | (4 << CC.IOCQES_SHIFT));
  if (get(side, NVME.CSTS) !== CSTS.RDY) {
    if ((get(side, NVME.CSTS) & ~CSTS.NSSRO) !== CSTS.RDY) return `CSTS is ${get(side, NVME.CSTS)} once it is enabled`;
  }
  const [sq, cq] = [BASE + 8 * PAGE_SIZE, BASE + 9 * PAGE_SIZE];
  side.fill(sq, new Uint8Array(2 * PAGE_SIZE));
  const execute = (queue: 0 | 1, index: number, fields: { opcode: number; prp1: number; [dword: number]: number }) => {
    const entry = new Uint8Array(SQE_BYTES);
    const view = new DataView(entry.buffer);
    view.setUint32(0, fields.opcode | ((index + 1) << 16), true);
    view.setUint32(4, fields.opcode === ADMIN.IDENTIFY && queue === 0 ? 0 : NSID, true);
    view.setBigUint64(24, BigInt(fields.prp1), true);
    for (const dword of [10, 11, 12]) view.setUint32(dword * 4, fields[dword] ?? 0, true);
    side.fill((queue === 0 ? RING : sq) + index * SQE_BYTES, entry);
    set(side, DOORBELLS + queue * 8, index + 1);
    const at = (queue === 0 ? RECORDS : cq) + index * CQE_BYTES;
    for (let slice = 0; slice < SLICES && (side.peek(at + 14, 1)[0] & 1) === 0; slice++) side.work(1);
    const last = new DataView(side.peek(at + 12, 4).buffer).getUint32(0, true);
    if (last !== ((index + 1) | 0x1_0000) >>> 0)
      return `command ${fields.opcode} of queue ${queue} ended with 0x${last.toString(16)}`;
    return undefined;
  };
  const failure =
    execute(0, 0, { opcode: ADMIN.IDENTIFY, prp1: DATA, 10: CNS.CONTROLLER }) ??
    execute(0, 1, { opcode: ADMIN.CREATE_CQ, prp1: cq, 10: (15 << 16) | 1, 11: (1 << 16) | 3 }) ??
    execute(0, 2, { opcode: ADMIN.CREATE_SQ, prp1: sq, 10: (15 << 16) | 1, 11: (1 << 16) | 1 });
  if (failure !== undefined) return failure;
  if (Buffer.from(side.peek(DATA + 24, 12)).toString() !== "Dirtmap NVMe") return "it does not know its name";
  const data = new Uint8Array(512).map((_, i) => i * 7);
  side.fill(DATA, data);
  const moved =
    execute(1, 0, { opcode: IO.WRITE, prp1: DATA, 10: 5 }) ?? execute(1, 1, { opcode: IO.READ, prp1: COPY, 10: 5 });
  return (
    moved ?? (Buffer.compare(side.peek(COPY, 512), data) === 0 ? undefined : "a block is not read as it was written")
  );
}

function useEngine(side: Side): string | undefined {
  side.fill(RECORDS, new Uint8Array(PAGE_SIZE));
  const data = new Uint8Array(3000).map((_, i) => i * 11);
  side.fill(DATA, data);
  side.fill(
    RING,
    descriptor.encode({
      opcode: OPCODE.COPY,
      length: 3000,
      source: BigInt(DATA),
      destination: BigInt(COPY + 7),
      tag: 77,
    }),
  );
  set64(side, ENGINE.RING_BASE, RING);
  set(side, ENGINE.RING_ENTRIES, 16);
  set64(side, ENGINE.COMPLETION_BASE, RECORDS);
  set(side, ENGINE.COMPLETION_ENTRIES, 16);
  set(side, ENGINE.CONTROL, CONTROL.ENABLE);
  set(side, DOORBELL.RING_TAIL, 1, REGION.BAR2);
  for (let slice = 0; slice < SLICES && side.work(1); slice++);
  const record = completion.decode(side.peek(RECORDS, completion.size));
  if (record.tag !== 77 || record.status !== CHAIN_STATUS.SUCCESS || record.pass !== 1) {
    return `its record is ${JSON.stringify(record)}, STATUS ${get(side, ENGINE.STATUS)}, ERROR ${get(side, ENGINE.ERROR)}`;
  }
  return Buffer.compare(side.peek(COPY + 7, 3000), data) === 0 ? undefined : "its copy is not what it copied";
}

async function useWorkload(side: Side, turn: () => Promise<void>): Promise<string | undefined> {
  set64(side, REGISTER.BUFFER_TABLE, DATA);
  set64(side, REGISTER.BUFFER_TABLE + 8, PAGE_SIZE);
  set(side, REGISTER.BUFFERS, 1);
  const before = side.device.model.counters().units;
  for (let look = 0; look < LOOKS; look++) {
    side.work(1);
    if (side.device.model.counters().units > before) return undefined;
    await turn();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return `it writes nothing: ${JSON.stringify(side.device.model.counters())}`;
}

function set(side: Side, offset: number, value: number, region: number = REGION.BAR0): void {
  side.write({ region, offset, data: new Uint8Array(Uint32Array.of(value).buffer) });
}

function set64(side: Side, offset: number, value: number): void {
  side.write({ region: REGION.BAR0, offset, data: new Uint8Array(BigUint64Array.of(BigInt(value)).buffer) });
}

function get(side: Side, offset: number): number {
  return new DataView(side.read(REGION.BAR0, offset, 4).buffer).getUint32(0, true);
}
