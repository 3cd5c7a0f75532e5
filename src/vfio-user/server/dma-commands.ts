import { hex, isPowerOfTwo, PAGE_SIZE, pageOf, U64_MAX } from "../../memory/address.js";
import {
  VFIO_USER_F_DMA_REGION_FILE_IO,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP,
  vfio_user_bitmap,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
} from "../../uapi/vfio-user.js";
import type { Message, MessageSocket } from "../message-socket.js";
import type { Answer } from "./answer.js";
import { bitmapBytes, bitmapOver, MAX_BITMAP_BYTES } from "./bitmap.js";
import type { ClientMemory, DmaRegion } from "./client-memory.js";
import type { DmaChannel } from "./dma-channel.js";
import type { DmaLog, DmaLogUser } from "./dma-logging.js";
import { refusal, requestOf, sizedRequestOf } from "./refusal.js";
import type { ServedDevice } from "./served-device.js";

const MAP = "VFIO_USER_DMA_MAP";
const UNMAP = "VFIO_USER_DMA_UNMAP";

/** The last page of the 64-bit address space; one behind it counts as outside, as in the kernel. */
const END = U64_MAX;

/** A device to which memory is mapped, and its log. */
interface Mapped {
  readonly memory: ClientMemory;
  readonly logging: DmaLog;
}

/** VFIO_USER_DMA_MAP. At once, in the middle of a DMA even, but where a log of everything has to end. */
export function mapDma(message: Message, device: ServedDevice, channel: DmaChannel): null | Promise<null> {
  const region = regionToMap(message);
  const fd = message.fds.at(0);
  message.fds.length = 0;
  device.memory.map(region, fd, channel);
  return device.logging.covers(region) ? null : device.logging.end().then(() => null);
}

/** What a VFIO_USER_DMA_MAP asks for; its descriptor, if there is one, is left with it. @throws UapiError EINVAL */
export function regionToMap({ payload, fds }: Message): DmaRegion {
  const { flags, offset, address, size } = sizedRequestOf(vfio_user_dma_map, payload, MAP);
  const refuse = (remedy: string) => refusal("EINVAL", MAP, `map ${hex(size)} bytes at ${hex(address)}`, remedy);
  const rights = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE;
  const ways = VFIO_USER_F_DMA_REGION_MMAP | VFIO_USER_F_DMA_REGION_FILE_IO;
  if ((flags & rights) === 0 || (flags & ~(rights | ways)) !== 0) {
    throw refuse(`flags ${flags}: give readable, writeable or both, and no others but MMAP or FILE_IO`);
  }
  if ((flags & ways) === ways) throw refuse("MMAP and FILE_IO exclude each other");
  if ((flags & ways) !== 0 && fds.length === 0) throw refuse("send the descriptor that is to be mapped or read");
  checkRange(address, size, refuse);
  if (fds.length > 1) throw refuse(`${fds.length} descriptors came: send one, or none`);
  if (offset % BigInt(PAGE_SIZE) !== 0n) throw refuse(`an offset of ${hex(offset)} is no multiple of ${PAGE_SIZE}`);
  if (fds.length > 0 && offset + size > BigInt(Number.MAX_SAFE_INTEGER)) throw refuse("no file is that long");
  return {
    page: pageOf(address),
    pages: Number(size / BigInt(PAGE_SIZE)),
    readable: (flags & VFIO_USER_F_DMA_REGION_READ) !== 0,
    writeable: (flags & VFIO_USER_F_DMA_REGION_WRITE) !== 0,
    offset: Number(offset),
    fileIo: (flags & VFIO_USER_F_DMA_REGION_FILE_IO) !== 0,
  };
}

/**
 * VFIO_USER_DMA_UNMAP. A DMA runs to its end on this very thread, and in the middle of one only what {@link leavesMapped} is
 * unmapped: so none is in flight to what is unmapped when the reply is sent.
 */
export function unmapDma(
  { payload }: Pick<Message, "payload">,
  device: Mapped,
  { socket, user }: { socket: MessageSocket; user: DmaLogUser },
): Answer | Promise<Answer> {
  const { flags, address, size } = sizedRequestOf(vfio_user_dma_unmap, payload, UNMAP);
  const refuse = (remedy: string) => refusal("EINVAL", UNMAP, `unmap ${hex(size)} bytes at ${hex(address)}`, remedy);
  const head = payload.slice(0, vfio_user_dma_unmap.size);
  switch (flags) {
    case VFIO_USER_F_DMA_UNMAP_ALL:
      if (address !== 0n || size !== 0n) throw refuse("give no address and no size with the flag ALL");
      device.memory.clear();
      return head;
    case VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP:
      return unmapWithBitmap(payload, device, { socket, user });
    case 0:
      checkRange(address, size, refuse);
      device.memory.unmap(pageOf(address), Number(size / BigInt(PAGE_SIZE)));
      return head;
    default:
      throw refuse(`flags ${flags}: give ALL, GET_DIRTY_BITMAP or none`);
  }
}

/** True for a VFIO_USER_DMA_UNMAP that leaves mapped what DMA reaches, or is refused: that need not end before the answer. */
export function leavesMapped({ payload }: Message, channel: DmaChannel): boolean {
  if (payload.byteLength < vfio_user_dma_unmap.size) return true;
  const { flags, address, size } = vfio_user_dma_unmap.decode(payload);
  return flags === 0 && !channel.reaches(address, size);
}

/** With the bits of the device's own log: what it wrote since they were last read, up to the unmapping. */
async function unmapWithBitmap(
  payload: Uint8Array,
  device: Mapped,
  { socket, user }: { socket: MessageSocket; user: DmaLogUser },
): Promise<Answer> {
  const head = vfio_user_dma_unmap.size + vfio_user_bitmap.size;
  const { argsz, address, size } = vfio_user_dma_unmap.decode(payload);
  const refuse = (remedy: string) =>
    refusal("EINVAL", UNMAP, `unmap ${hex(size)} bytes at ${hex(address)} with their bitmap`, remedy);
  checkRange(address, size, refuse);
  if (!device.logging.isSupported) throw refuse("this device has no log");
  const { pgsize, size: given } = requestOf(vfio_user_bitmap, payload.subarray(vfio_user_dma_unmap.size), UNMAP);
  if (pgsize < BigInt(PAGE_SIZE) || !isPowerOfTwo(pgsize) || pgsize > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw refuse(`a page size of ${pgsize}: give a power of two from ${PAGE_SIZE} on`);
  }
  const bytes = bitmapBytes(size, Number(pgsize));
  if (bytes > MAX_BITMAP_BYTES || given > BigInt(MAX_BITMAP_BYTES)) throw refuse("its bitmap is too long");
  if (given < BigInt(bytes) || argsz < head + Number(given)) throw refuse(`its bitmap takes ${bytes} bytes`);
  const page = pageOf(address);
  const pages = Number(size / BigInt(PAGE_SIZE));
  if (!device.memory.has(page, pages)) device.memory.unmap(page, pages);
  const answer = socket.outgoing(head + Number(given));
  answer.set(payload.subarray(0, head));
  const into = bitmapOver(answer, head, { iova: address, length: size, granule: Number(pgsize) }, Number(given));
  await device.logging.report({ iova: address, length: size, pageSize: Number(pgsize), into }, user);
  device.memory.unmap(page, pages);
  return answer;
}

function checkRange(address: bigint, size: bigint, refuse: (remedy: string) => Error): void {
  if (size === 0n) throw refuse("give a size above 0");
  if (address + size > END) throw refuse("it ends behind the 64-bit address space");
  if (address % BigInt(PAGE_SIZE) !== 0n || size % BigInt(PAGE_SIZE) !== 0n) {
    throw refuse(`begin and end at multiples of ${PAGE_SIZE}`);
  }
}
