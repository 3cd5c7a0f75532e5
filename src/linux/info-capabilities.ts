import { DirtmapError } from "../errors.js";
import { vfio_info_cap_header } from "../uapi/vfio.js";

/** An entry of the capability chain that an INFO ioctl of VFIO answered. */
export interface InfoCapability {
  readonly id: number;
  readonly version: number;
  /** Of its header, in the answer. */
  readonly offset: number;
}

/**
 * The capabilities of an INFO ioctl's answer (struct vfio_info_cap_header), in the chain's order.
 * @param answer what the kernel wrote, no byte more
 * @param first cap_offset: where the chain begins; 0: there is none
 * @throws DirtmapError `MALFORMED` for a chain that leaves the answer or never ends
 */
export function infoCapabilities(answer: Uint8Array, first: number): InfoCapability[] {
  const found: InfoCapability[] = [];
  const seen = new Set<number>();
  for (let offset = first; offset !== 0; ) {
    if (offset + vfio_info_cap_header.size > answer.length) malformed(`goes on at ${offset} of ${answer.length} bytes`);
    if (seen.has(offset)) malformed(`comes back to ${offset}`);
    seen.add(offset);
    const { id, version, next } = vfio_info_cap_header.decode(answer, offset);
    found.push({ id, version, offset });
    offset = next;
  }
  return found;
}

function malformed(what: string): never {
  throw new DirtmapError(`the chain of capabilities that the kernel answered ${what}`, { code: "MALFORMED" });
}
