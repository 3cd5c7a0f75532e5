import type { MappableRegion } from "../../devices/model.js";
import type { RegionInfo } from "../../host/host.js";
import {
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  vfio_region_info,
} from "../../uapi/vfio.js";
import {
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  vfio_region_info_cap_sparse_mmap,
  vfio_region_sparse_mmap_area,
  vfio_user_device_info,
  vfio_user_region_io_fds,
} from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import type { Answer } from "./answer.js";
import { PCI_IRQS } from "./irqs.js";
import { refusal, requestOf, sizedRequestOf } from "./refusal.js";
import type { ServedDevice } from "./served-device.js";

/** VFIO_PCI_NUM_REGIONS: a PCI device has all indices, some of size 0. */
const PCI_REGIONS = 9;

/** VFIO_USER_DEVICE_GET_INFO */
export function getInfo({ payload }: Message): Uint8Array {
  sizedRequestOf(vfio_user_device_info, payload, "VFIO_USER_DEVICE_GET_INFO");
  return vfio_user_device_info.encode({
    argsz: vfio_user_device_info.size,
    flags: VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI,
    num_regions: PCI_REGIONS,
    num_irqs: PCI_IRQS,
  });
}

/**
 * VFIO_USER_DEVICE_GET_REGION_INFO. Capabilities, and the descriptor of a region that has some, come only where the client
 * has room for all; else it learns from `argsz` how much that is. (The kernel sets the CAPS flag even then, with an offset
 * of 0, which QEMU's client takes for an error.)
 */
export function getRegionInfo({ payload }: Message, { model }: ServedDevice): Answer {
  const syscall = "VFIO_USER_DEVICE_GET_REGION_INFO";
  const { argsz: room, index } = sizedRequestOf(vfio_region_info, payload, syscall);
  checkIndex(index, syscall);
  const region = model.info.regions.find((info) => info.index === index);
  const mappable = model.mappable?.find((info) => info.region === index);
  const capability = mappable === undefined ? null : sparseCapability(mappable);
  const argsz = vfio_region_info.size + (capability?.byteLength ?? 0);
  const whole = room >= argsz;
  let flags = accessFlags(region) | (mappable === undefined ? 0 : VFIO_REGION_INFO_FLAG_MMAP);
  if (capability !== null && whole) flags |= VFIO_REGION_INFO_FLAG_CAPS;
  const answer = new Uint8Array(whole ? argsz : vfio_region_info.size);
  vfio_region_info.encode(
    {
      argsz,
      flags,
      index,
      cap_offset: capability !== null && whole ? vfio_region_info.size : 0,
      size: BigInt(region?.bytes ?? 0),
      offset: BigInt(mappable?.offset ?? 0),
    },
    answer,
  );
  if (capability !== null && whole) answer.set(capability, vfio_region_info.size);
  return mappable !== undefined && whole ? { payload: answer, fds: [mappable.fd] } : answer;
}

/** VFIO_USER_DEVICE_GET_REGION_IO_FDS: no model wants its registers written by ioeventfd or ioregionfd. */
export function getRegionIoFds({ payload }: Message): never {
  const syscall = "VFIO_USER_DEVICE_GET_REGION_IO_FDS";
  const { argsz, flags, index, count } = requestOf(vfio_user_region_io_fds, payload, syscall);
  checkIndex(index, syscall);
  if (argsz < vfio_user_region_io_fds.size || flags !== 0 || count !== 0) {
    throw refusal("EINVAL", syscall, `answer into ${argsz} bytes`, "give room for the reply, and no flags or count");
  }
  throw refusal("EOPNOTSUPP", syscall, `give descriptors for I/O to region ${index}`, "there are none");
}

function checkIndex(index: number, syscall: string): void {
  if (index < PCI_REGIONS) return;
  throw refusal("EINVAL", syscall, `ask for region ${index}`, `give 0 to ${PCI_REGIONS - 1}`);
}

function accessFlags(region: RegionInfo | undefined): number {
  if (region === undefined) return 0;
  return (region.readable ? VFIO_REGION_INFO_FLAG_READ : 0) | (region.writeable ? VFIO_REGION_INFO_FLAG_WRITE : 0);
}

/** VFIO_REGION_INFO_CAP_SPARSE_MMAP of a region of which only parts can be mapped; null: all can. */
function sparseCapability({ areas }: MappableRegion): Uint8Array | null {
  if (areas === null) return null;
  const { size: header } = vfio_region_info_cap_sparse_mmap;
  const { size: each } = vfio_region_sparse_mmap_area;
  const capability = new Uint8Array(header + areas.length * each);
  vfio_region_info_cap_sparse_mmap.encode(
    { header: { id: VFIO_REGION_INFO_CAP_SPARSE_MMAP, version: 1 }, nr_areas: areas.length },
    capability,
  );
  for (const [i, { offset, bytes }] of areas.entries()) {
    vfio_region_sparse_mmap_area.encode({ offset: BigInt(offset), size: BigInt(bytes) }, capability, header + i * each);
  }
  return capability;
}
