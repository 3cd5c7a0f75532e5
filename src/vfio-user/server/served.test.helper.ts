import { closeSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PAGE_SIZE } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { createMemfd } from "../../sys/memfd.js";
import { mapFileOver } from "../../sys/mmap.js";
import { POLLIN, PollSet } from "../../sys/poll.js";
import {
  type MigState,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_DEVICE_STATE,
  vfio_device_feature,
  vfio_device_feature_mig_state,
} from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  dirtmap_counters,
  dirtmap_handover,
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
  vfio_user_mig_data,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import type { ServerCounters } from "../client/counters.js";
import type { Message } from "../message-socket.js";
import { proxyDevice } from "../proxy/proxy.js";
import { RawClient } from "../raw-client.test.helper.js";
import type { DmaMode } from "./client-memory.js";
import { type DeviceServer, startServer } from "./server.js";
import { TEST_COMMAND, TEST_FAULTS, TEST_REGISTER } from "./test-model.test.helper.js";

/*
 * For tests: a served TestModel with a client, and what clients do.
 */

export const READ_WRITE = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE;

/** Bytes of migration data that are asked for at once. */
const DATA_BYTES = 1 << 20;

/** A directory of the test's own, for sockets. */
export function socketDirectory(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "dirtmap-vfio-user-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** A server, its log, and a client that has agreed on the version. With a proxy: the client's server is the proxy. */
export class Served implements AsyncDisposable {
  readonly server: DeviceServer;
  /** The server that the proxy stands before; without one, the same. */
  readonly behind: DeviceServer;
  readonly lines: string[];
  client: RawClient;
  readonly #directory: Disposable;

  private constructor(
    { server, behind = server }: { server: DeviceServer; behind?: DeviceServer },
    lines: string[],
    directory: Disposable,
    capabilities: object | undefined,
  ) {
    this.server = server;
    this.behind = behind;
    this.lines = lines;
    this.#directory = directory;
    this.client = RawClient.open(server.path, capabilities);
  }

  static async start({
    dma = "auto",
    busy = false,
    incoming = false,
    proxy,
    capabilities,
  }: {
    dma?: DmaMode;
    incoming?: boolean;
    busy?: boolean;
    /** Whose log is then {@link lines}. */
    proxy?: { readonly dma?: DmaMode; readonly incoming?: boolean };
    capabilities?: object;
  } = {}): Promise<Served> {
    const directory = socketDirectory();
    const lines: string[] = [];
    const server = await startServer(
      new URL("./test-model-thread.test.helper.js", import.meta.url),
      { model: "test", options: {}, id: "test", dma, incoming, busy },
      {
        path: join(directory.path, "device"),
        log: (line) => proxy === undefined && lines.push(line),
      },
    );
    if (proxy === undefined) return new Served({ server }, lines, directory, capabilities);
    const path = join(directory.path, "proxied");
    const log = (line: string) => lines.push(line);
    try {
      const started = await proxyDevice({ server: server.path, path, id: "test", ...proxy, log });
      return new Served({ server: started, behind: server }, lines, directory, capabilities);
    } catch (error) {
      await server.close();
      throw error;
    }
  }

  /** The client gives the device memory, as QEMU does when it makes its own. */
  giveMemory(): this {
    const { fd } = sharedMemory(PAGE_SIZE);
    mapDma(this.client, { address: 0n, size: BigInt(PAGE_SIZE) }, [fd]);
    closeSync(fd);
    return this;
  }

  /**
   * The server stands still: its device does a DMA by a message that the client does not answer, until it is let go on.
   */
  standStill(): { goOn(): void } {
    const { client } = this;
    const address = 0x1000_0000n;
    mapDma(client, { address, size: BigInt(PAGE_SIZE) });
    const registers = Buffer.alloc(16);
    registers.writeBigUInt64LE(address, 0);
    registers.writeUInt32LE(4, TEST_REGISTER.BYTES - TEST_REGISTER.ADDRESS);
    client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
    const head = vfio_user_region_access.encode({ offset: BigInt(TEST_REGISTER.COMMAND), region: 0, count: 4 });
    const write = Buffer.concat([head, Buffer.from([TEST_COMMAND.WRITE_NOW, 0, 0, 0])]);
    client.send(VFIO_USER_COMMAND.REGION_WRITE, write, undefined, { noReply: true });
    const { id, command, payload } = client.next();
    const answer = payload.slice(0, vfio_user_dma_access.size);
    return { goOn: () => client.socket.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY }, answer) };
  }

  /** Another client, in the place of the one that is there. */
  reconnect(capabilities?: object): RawClient {
    this.client[Symbol.dispose]();
    this.client = RawClient.open(this.server.path, capabilities);
    return this.client;
  }

  control(): RawClient {
    return RawClient.open(this.server.controlPath);
  }

  /** Waits until the log has a line like this. */
  async logged(like: RegExp, limitMs = 5000): Promise<string> {
    const until = performance.now() + limitMs;
    for (;;) {
      const line = this.lines.find((candidate) => like.test(candidate));
      if (line !== undefined) return line;
      if (performance.now() > until) throw new Error(`no line like ${like} in: ${this.lines.join("; ")}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    await this.server.close();
    if (this.behind !== this.server) await this.behind.close();
    this.#directory[Symbol.dispose]();
  }
}

/** Memory that a client shares: a memfd and its bytes here. Close the descriptor. */
export function sharedMemory(bytes: number): { fd: number; u8: Uint8Array } {
  const fd = createMemfd("guest", bytes);
  const u8 = createArena(bytes).u8.subarray(0, bytes);
  mapFileOver(u8, fd);
  return { fd, u8 };
}

export function mapDma(
  client: RawClient,
  {
    address,
    size,
    offset = 0n,
    flags = READ_WRITE,
  }: { address: bigint; size: bigint; offset?: bigint; flags?: number },
  fds?: readonly number[],
): void {
  client.call(
    "DMA_MAP",
    vfio_user_dma_map,
    { argsz: vfio_user_dma_map.size, flags, offset, address, size },
    fds === undefined ? {} : { fds },
  );
}

export function unmapDma(client: RawClient, address: bigint, size: bigint, flags = 0): Uint8Array {
  return client.call("DMA_UNMAP", vfio_user_dma_unmap, { argsz: vfio_user_dma_unmap.size, flags, address, size })
    .payload;
}

/** VFIO_USER_DEVICE_FEATURE; returns the reply's data. @param room for the reply's data, in bytes */
export function feature(
  client: RawClient,
  flags: number,
  data: Uint8Array = new Uint8Array(0),
  room = data.byteLength,
): Uint8Array {
  const argsz = vfio_device_feature.size + room;
  const { payload } = client.call("DEVICE_FEATURE", vfio_device_feature, { argsz, flags }, { data });
  return payload.subarray(vfio_device_feature.size);
}

/** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET. */
export function setState(client: RawClient, state: MigState): void {
  const data = vfio_device_feature_mig_state.encode({ device_state: VFIO_DEVICE_STATE[state], data_fd: -1 });
  feature(client, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE, data);
}

/** Gives one device, which is in RESUMING, the state of another, which is in STOP_COPY. */
export function moveData(from: RawClient, to: RawClient): void {
  for (;;) {
    const { payload } = from.call("MIG_DATA_READ", vfio_user_mig_data, { argsz: 8 + DATA_BYTES, size: DATA_BYTES });
    const { size } = vfio_user_mig_data.decode(payload);
    if (size === 0) break;
    const data = payload.subarray(vfio_user_mig_data.size, vfio_user_mig_data.size + size);
    to.call("MIG_DATA_WRITE", vfio_user_mig_data, { argsz: 8 + size, size }, { data });
  }
}

/** DIRTMAP_COMMAND.COUNTERS: what the server tells of its device. */
export function told(client: RawClient): ServerCounters {
  const { payload } = client.call(DIRTMAP_COMMAND.COUNTERS, dirtmap_counters, { argsz: 65536 });
  return JSON.parse(new TextDecoder().decode(payload.subarray(dirtmap_counters.size)).replace(/\0$/, ""));
}

/** DIRTMAP_COMMAND.HANDOVER */
export function announce(client: RawClient, notice: number, migration: string, argsz?: number): void {
  const data = Buffer.from(migration);
  const size = dirtmap_handover.size + data.byteLength;
  client.call(DIRTMAP_COMMAND.HANDOVER, dirtmap_handover, { argsz: argsz ?? size, notice }, { data });
}

/** A client's memory that is reached by messages: answers the server's commands from a Map of bytes. */
export function messageMemory(bytes: number, base: bigint) {
  const memory = Buffer.alloc(bytes);
  const seen: { command: number; address: bigint; count: number }[] = [];
  const answer = (message: Message, client: RawClient) => {
    const { address, count } = vfio_user_dma_access.decode(message.payload);
    const at = Number(address - base);
    seen.push({ command: message.command, address, count: Number(count) });
    const head = vfio_user_dma_access.encode({ address, count });
    if (message.command === VFIO_USER_COMMAND.DMA_WRITE) {
      memory.set(message.payload.subarray(vfio_user_dma_access.size), at);
      client.socket.sendReply(message, head);
    } else client.socket.sendReply(message, Buffer.concat([head, memory.subarray(at, at + Number(count))]));
  };
  return { memory, seen, answer };
}

/** Has the device do a DMA in its next slice of work; returns the fault, or `done`. */
export function dma(
  client: RawClient,
  command: "WRITE" | "READ" | "WRITE_NOW" | "READ_NOW" | "WRITE_PAGES",
  { address, value = 0, bytes = 4 }: { address: bigint; value?: number; bytes?: number },
): (typeof TEST_FAULTS)[number] {
  const registers = Buffer.alloc(20);
  registers.writeBigUInt64LE(address, 0);
  registers.writeUInt32LE(value, TEST_REGISTER.VALUE - TEST_REGISTER.ADDRESS);
  registers.writeUInt32LE(bytes, TEST_REGISTER.BYTES - TEST_REGISTER.ADDRESS);
  client.regionWrite(0, TEST_REGISTER.ADDRESS, registers.subarray(0, 16));
  client.writeRegister(0, TEST_REGISTER.COMMAND, TEST_COMMAND[command]);
  return done(client);
}

/** What came of the device's DMA, once it has done it: in its next slice of work, which no answer waits for. */
export function done(client: RawClient): (typeof TEST_FAULTS)[number] {
  for (let tries = 0; tries < 1000; tries++) {
    const result = client.readRegister(0, TEST_REGISTER.RESULT);
    if (result !== 0) return TEST_FAULTS[result];
  }
  throw new Error("the device did not do it");
}

/** Has the device raise an interrupt. */
export function raise(client: RawClient, index: number, vector: number): void {
  const registers = Buffer.alloc(12);
  registers.writeBigUInt64LE(BigInt(index) << 12n, 0);
  registers.writeUInt32LE(vector, 8);
  client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
  client.writeRegister(0, TEST_REGISTER.COMMAND, TEST_COMMAND.RAISE);
}

/** Has the device let INTx go. */
export function lower(client: RawClient): void {
  client.writeRegister(0, TEST_REGISTER.COMMAND, TEST_COMMAND.LOWER);
}

/** True if a descriptor is readable, now or within the time. */
export function readable(fd: number, withinMs = 0): boolean {
  return new PollSet([{ fd, events: POLLIN }]).wait(withinMs) > 0;
}

/** The errno's name that a call is refused with; `none` where it is not. */
export function errnoOf(call: () => unknown): string {
  try {
    call();
    return "none";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}
