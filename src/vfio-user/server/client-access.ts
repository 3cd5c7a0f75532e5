import type { DmaFault } from "../../devices/model.js";
import { hex, PAGE_SIZE, pageOf, U64_MAX } from "../../memory/address.js";
import { DIRTMAP_WRITE_PATH, dirtmap_client_memory, dirtmap_write_path } from "../../uapi/vfio-user.js";
import type { Message, MessageSocket } from "../message-socket.js";
import type { ClientMemory, WritePath } from "./client-memory.js";
import type { DmaChannel } from "./dma-channel.js";
import { refusal, requestOf, sizedRequestOf } from "./refusal.js";
import { MAX_TRANSFER } from "./region-access.js";

/*
 * What a control connection does with the memory of the device's client: it decides how the device's writes get there, and
 * reads and writes it by DMA_READ and DMA_WRITE, in the device's name. The client then sees each write as one of the device.
 */

const HEAD = dirtmap_client_memory.size;

/** What is needed of a device to reach its client's memory. */
export interface ClientAccess {
  readonly memory: ClientMemory;
  /** It does no DMA at all. */
  readonly isStopped: boolean;
}

/** A connection that may switch the path of the device's writes. */
interface Switcher {
  readonly name: string;
}

/**
 * Who has switched the device's writes to messages. The switch is that connection's alone, and ends with it: writes by message
 * cost the guest time, and serve nobody once the migration that wanted them has gone.
 */
export class WritePathSwitch {
  readonly #memory: ClientMemory;
  #user: Switcher | null = null;

  constructor(memory: ClientMemory) {
    this.#memory = memory;
  }

  /** The path, and the connection that chose it; null: nobody did. */
  get state(): { readonly path: WritePath; readonly chosenBy: string | null } {
    return { path: this.#memory.writePath, chosenBy: this.#user?.name ?? null };
  }

  /** @throws UapiError EBUSY while another connection has switched it */
  choose(path: WritePath, user: Switcher): void {
    if (this.#user !== null && this.#user !== user) {
      throw refusal("EBUSY", "write path", `have writes go by ${path}`, `${this.#user.name} has chosen how they go`);
    }
    this.#user = path === "direct" ? null : user;
    this.#memory.writePath = path;
  }

  /** A connection is over. */
  release(user: Switcher): void {
    if (this.#user === user) this.choose("direct", user);
  }
}

/** DIRTMAP_COMMAND.WRITE_PATH: holds for every write that the device does after the answer. */
export function switchWritePath(
  { payload }: Message,
  { writePath }: { readonly writePath: WritePathSwitch },
  user: Switcher,
): Uint8Array {
  const { path: number } = sizedRequestOf(dirtmap_write_path, payload, "write path");
  const path = (Object.keys(DIRTMAP_WRITE_PATH) as WritePath[]).find((name) => DIRTMAP_WRITE_PATH[name] === number);
  if (path === undefined) throw refusal("EINVAL", "write path", `have writes go by path ${number}`, "there is none");
  writePath.choose(path, user);
  return dirtmap_write_path.encode({ argsz: dirtmap_write_path.size, path: number });
}

/** DIRTMAP_COMMAND.CLIENT_READ */
export function readClient({ payload }: Message, device: ClientAccess, socket: MessageSocket): Uint8Array {
  const access = accessOf(payload, "read client memory");
  const reply = socket.outgoing(HEAD + access.count);
  reply.set(payload.subarray(0, HEAD));
  check(access, channelOf(device, access).read(access.address, reply, HEAD, access.count));
  return reply;
}

/** DIRTMAP_COMMAND.CLIENT_WRITE */
export function writeClient({ payload }: Message, device: ClientAccess): Uint8Array {
  const access = accessOf(payload, "write client memory");
  if (payload.byteLength !== HEAD + access.count) {
    throw access.refuse("EINVAL", `send all of the data: ${payload.byteLength - HEAD} bytes came`);
  }
  // A copy: what comes while the client is waited for is received into the memory that the payload lies in.
  const data = payload.slice();
  check(access, channelOf(device, access).write(access.address, data, HEAD, access.count));
  return data.subarray(0, HEAD);
}

/**
 * DIRTMAP_COMMAND.CLIENT_REWRITE: whole pages. Only of a device that is stopped, and the caller answers for the vCPUs: between
 * the reading of a page and its writing nobody else may write to it.
 */
export function rewriteClient({ payload }: Message, device: ClientAccess): Uint8Array {
  const access = accessOf(payload, "rewrite client memory");
  const { address, count } = access;
  if (address % BigInt(PAGE_SIZE) !== 0n || count % PAGE_SIZE !== 0) {
    throw access.refuse("EINVAL", `begin and end at multiples of ${PAGE_SIZE}`);
  }
  if (!device.isStopped) throw access.refuse("EBUSY", "stop the device first: STOP or STOP_COPY");
  const head = payload.slice(0, HEAD);
  const first = pageOf(address);
  check(access, device.memory.rewrite(first, count / PAGE_SIZE));
  return head;
}

interface Access {
  readonly address: bigint;
  readonly count: number;
  refuse(code: Parameters<typeof refusal>[0], remedy: string): Error;
}

/** @throws UapiError EINVAL for more than is moved at once, or an end behind 2^64 */
function accessOf(payload: Uint8Array, what: string): Access {
  const { address, count } = requestOf(dirtmap_client_memory, payload, what);
  const refuse: Access["refuse"] = (code, remedy) =>
    refusal(code, what, `reach ${hex(count)} bytes at ${hex(address)}`, remedy);
  if (count > BigInt(MAX_TRANSFER)) throw refuse("EINVAL", `ask for at most ${MAX_TRANSFER} bytes at once`);
  if (address + count > U64_MAX) throw refuse("EINVAL", "it ends behind the 64-bit address space");
  return { address, count: Number(count), refuse };
}

/** @throws UapiError ENOTCONN where the device has no client */
function channelOf({ memory }: ClientAccess, { refuse }: Access): DmaChannel {
  if (memory.channel === null) throw refuse("ENOTCONN", "connect the device's client: it has none");
  return memory.channel;
}

/** @throws UapiError EFAULT for what the client refuses, EIO where it does not answer */
function check({ refuse }: Access, fault: DmaFault | null): void {
  if (fault === null) return;
  if (fault === "detached") throw refuse("EIO", "see whether the device's client still answers");
  throw refuse("EFAULT", `it is ${fault} for the device: its Bus Master Enable must be set, and memory be there`);
}
