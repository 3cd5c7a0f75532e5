import type { DmaFault, DmaPort } from "../../devices/model.js";
import type { PageNumber } from "../../memory/address.js";

/** The client's memory, as far as it has been given to the server (VFIO_USER_DMA_MAP): the device's way to it. */
export class ClientMemory implements DmaPort {
  write(_page: PageNumber, _offset: number, _source: Uint8Array, _from: number, _bytes: number): DmaFault | null {
    return "not-mapped";
  }

  read(_page: PageNumber, _offset: number, _target: Uint8Array, _to: number, _bytes: number): DmaFault | null {
    return "not-mapped";
  }
}
