import { afterEach, beforeEach, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { MIG_STATES } from "../../host/device-feature.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { DmaMemory } from "../../memory/dma-memory.js";
import { ERRNO, type ErrnoName } from "../../uapi/errno.js";
import {
  type MigState,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_STATE,
  vfio_device_feature,
  vfio_device_feature_mig_state,
} from "../../uapi/vfio.js";
import {
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_USER_COMMAND,
  vfio_user_device_info,
  vfio_user_dma_access,
  vfio_user_dma_logging_report,
  vfio_user_dma_map,
} from "../../uapi/vfio-user.js";
import type { VfioUserDevice } from "./device.js";
import { type Command, FakeServer, versionReply } from "./fake-server.test.helper.js";
import { VfioUserHost } from "./host.js";

/*
 * A server that is made with libvfio-user. Its log reports on exactly one region, and what it writes by messages its client
 * has to note. Since its commit 4f4fce4 a reset leaves the migration's state as it is.
 */

const HEAD = vfio_device_feature.size;
const PAGES_EACH = 4;
const REGION = BigInt(PAGES_EACH * PAGE_SIZE);
const DMA_ID = 900;

let server: FakeServer;
let host: VfioUserHost;
let memory: DmaMemory;
/** Regions by their address, with the bits of the log. */
let log: Map<bigint, bigint>;
/** Of the device; null: it can't be migrated. */
let state: MigState | null;
/** The errno with which it refuses each state, and where it is then; null: it does what it is asked. */
let refuses: { readonly with: ErrnoName; readonly goesTo: MigState } | null;
let serving: Promise<void>;
let written: () => void;

beforeEach(() => {
  server = new FakeServer();
  host = new VfioUserHost([{ path: server.path, id: "foreign" }]);
  memory = DmaMemory.allocate(2 * PAGES_EACH * PAGE_SIZE, { kind: "memfd" });
  log = new Map();
  state = null;
  refuses = null;
  serving = serve();
});
afterEach(async () => {
  await host[Symbol.asyncDispose]();
  await serving;
  memory[Symbol.dispose]();
  server[Symbol.dispose]();
});

/** Until the client closes the connection. */
async function serve(): Promise<void> {
  for (;;) {
    let command: Command;
    try {
      command = await server.next();
    } catch {
      return;
    }
    if (command.isReply) {
      written();
      continue;
    }
    const answered = answer(command);
    if (typeof answered === "string") server.socket.sendError(command, ERRNO[answered]);
    else server.socket.sendReply(command, answered);
  }
}

function answer({ command, payload }: Command): Uint8Array | null | ErrnoName {
  switch (command) {
    case VFIO_USER_COMMAND.VERSION:
      return versionReply({});
    case VFIO_USER_COMMAND.DEVICE_GET_INFO:
      return vfio_user_device_info.encode({ argsz: vfio_user_device_info.size, flags: VFIO_DEVICE_FLAGS_RESET });
    case VFIO_USER_COMMAND.DEVICE_RESET:
      return null;
    case VFIO_USER_COMMAND.DMA_MAP:
      log.set(vfio_user_dma_map.decode(payload).address, 0n);
      return null;
    case VFIO_USER_COMMAND.DMA_UNMAP:
      return payload;
    case VFIO_USER_COMMAND.DEVICE_FEATURE:
      return feature(payload);
    default:
      return "EINVAL";
  }
}

function feature(payload: Uint8Array): Uint8Array | null | ErrnoName {
  const { flags } = vfio_device_feature.decode(payload);
  if (state !== null && (flags & VFIO_DEVICE_FEATURE_MASK) === VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE) {
    return migState(payload, flags);
  }
  if ((flags & VFIO_DEVICE_FEATURE_PROBE) !== 0) {
    return (flags & VFIO_DEVICE_FEATURE_MASK) === VFIO_DEVICE_FEATURE.DMA_LOGGING_START ? payload : "EINVAL";
  }
  if ((flags & VFIO_DEVICE_FEATURE_MASK) === VFIO_DEVICE_FEATURE.MIG_DATA_SIZE) return "EINVAL";
  if ((flags & VFIO_DEVICE_FEATURE_MASK) !== VFIO_DEVICE_FEATURE.DMA_LOGGING_REPORT) return payload;
  const { iova, length } = vfio_user_dma_logging_report.decode(payload, HEAD);
  // Over several regions: a success without data. Of a part of one: ENOTSUP.
  if (length > REGION) return null;
  const bits = log.get(iova);
  if (bits === undefined || length !== REGION) return "EOPNOTSUPP";
  const reply = Buffer.concat([payload, Buffer.alloc(8)]);
  reply.writeBigUInt64LE(bits, payload.byteLength);
  log.set(iova, 0n);
  return reply;
}

function migState(payload: Uint8Array, flags: number): Uint8Array | ErrnoName {
  if ((flags & VFIO_DEVICE_FEATURE_PROBE) !== 0) return payload;
  if ((flags & VFIO_DEVICE_FEATURE_GET) !== 0) {
    const device_state = VFIO_DEVICE_STATE[state ?? "ERROR"];
    return Buffer.concat([payload.subarray(0, HEAD), vfio_device_feature_mig_state.encode({ device_state })]);
  }
  if (refuses !== null) {
    state = refuses.goesTo;
    return refuses.with;
  }
  const { device_state } = vfio_device_feature_mig_state.decode(payload, HEAD);
  state = MIG_STATES.find((name) => VFIO_DEVICE_STATE[name] === device_state) ?? null;
  return payload;
}

/** The device, with two regions of memory and its log on. */
async function logged(): Promise<VfioUserDevice> {
  const iommufd = await host.openIommufd();
  const ioas = await iommufd.allocIoas();
  for (const half of [0, 1]) {
    const length = PAGES_EACH * PAGE_SIZE;
    const span = { arena: memory.arena, offset: memory.offset + half * length, length };
    await iommufd.map(ioas, span, { iova: BigInt(half) * REGION, readable: true, writeable: true });
  }
  const device = await host.openDevice("foreign");
  await device.bind(iommufd);
  await device.attach(ioas);
  await device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [{ iova: 0n, length: 2n * REGION }] });
  return device;
}

async function report(device: VfioUserDevice, first: number, pages: number): Promise<number[]> {
  const range = { iova: BigInt(first * PAGE_SIZE), length: BigInt(pages * PAGE_SIZE) };
  const into = new DirtyBitmap({ ...range, granule: PAGE_SIZE });
  await device.reportDmaLogging({ ...range, pageSize: PAGE_SIZE, into });
  return Array.from({ length: pages }, (_, bit) => bit + first).filter((page) => into.get(page - first));
}

it("has in its report what the device wrote by messages, once", async () => {
  const device = await logged();
  const done = new Promise<void>((resolve) => {
    written = resolve;
  });
  const payload = new Uint8Array(vfio_user_dma_access.size + 8);
  vfio_user_dma_access.encode({ address: REGION + BigInt(PAGE_SIZE) - 4n, count: 8n }, payload);
  server.socket.sendCommand(VFIO_USER_COMMAND.DMA_WRITE, DMA_ID, payload);
  await done;
  expect(await report(device, 0, 2 * PAGES_EACH)).toEqual([PAGES_EACH, PAGES_EACH + 1]);
  expect(await report(device, 0, 2 * PAGES_EACH)).toEqual([]);
});

it("is read region by region, and what was not asked for is kept until it is", async () => {
  const device = await logged();
  log.set(0n, 0b1001n);
  log.set(REGION, 0b0010n);
  expect(await report(device, 0, 1)).toEqual([0]);
  log.set(0n, 0b0100n);
  expect(await report(device, 1, 2 * PAGES_EACH - 1)).toEqual([2, 3, PAGES_EACH + 1]);
  expect(await report(device, 0, 2 * PAGES_EACH)).toEqual([]);
});

it("runs after a reset, and after it was opened, though its own reset leaves it where it is", async () => {
  state = "STOP_COPY";
  const device = await host.openDevice("foreign");
  expect(state).toBe("RUNNING");
  await device.setState("STOP");
  expect(state).toBe("STOP");
  await device.reset();
  expect(state).toBe("RUNNING");
  expect(await device.state()).toBe("RUNNING");
});

it("that goes to ERROR has failed with EIO, whatever errno its server has for it", async () => {
  state = "RUNNING";
  const device = await host.openDevice("foreign");
  refuses = { with: "ENXIO", goesTo: "ERROR" };
  await expect(device.setState("STOP")).rejects.toMatchObject({
    code: "EIO",
    message: expect.stringContaining("it is in ERROR"),
    cause: { code: "ENXIO" },
  });
  // It did not go there now.
  refuses = { with: "EBUSY", goesTo: "ERROR" };
  await expect(device.setState("STOP")).rejects.toMatchObject({ code: "EBUSY" });
});

it("that stays where it is refuses with its server's errno, and the stream goes on", async () => {
  state = "RUNNING";
  const device = await host.openDevice("foreign");
  const stream = await device.setState("RESUMING");
  refuses = { with: "EPERM", goesTo: "RESUMING" };
  await expect(device.setState("STOP")).rejects.toMatchObject({ code: "EPERM" });
  refuses = null;
  await device.setState("STOP");
  if (stream?.direction !== "resuming") throw new Error("no stream to resume from");
  await expect(stream.write(new Uint8Array(1))).rejects.toMatchObject({ code: "ENODEV" });
});

it("that knows no size of its state says 0 if it migrates, and ENOTTY if not", async () => {
  const device = await host.openDevice("foreign");
  await expect(device.dataSize()).rejects.toMatchObject({ code: "ENOTTY" });
  state = "RUNNING";
  expect(await device.dataSize()).toBe(0);
});

it("refuses a second start by itself: its server would take it", async () => {
  const device = await logged();
  const again = device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [{ iova: 0n, length: REGION }] });
  await expect(again).rejects.toMatchObject({ code: "EINVAL", remedy: expect.stringContaining("stop it first") });
});
