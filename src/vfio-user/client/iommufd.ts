import type { ObjectId } from "../../host/host.js";
import { SoftwareIommufd } from "../../iommufd/iommufd.js";
import { Lock } from "../../threads/lock.js";
import type { MappedDevice } from "./dma-mappings.js";
import { ServedIommu } from "./served-iommu.js";

/**
 * The iommufd in front of devices behind vfio-user sockets: mapping in an IOAS is VFIO_USER_DMA_MAP on every device that is
 * attached, and this process is the IOMMU of those whose DMA goes by messages.
 *
 * Devices in other processes need no access objects, and there is no hardware page table: hwInfo() says `none`, and dirty
 * tracking only of a device whose every write is seen here.
 */
export class VfioUserIommufd extends SoftwareIommufd {
  readonly #lock = new Lock();
  #ports = 0;

  constructor() {
    super({ reaches: () => true, mdevs: null });
  }

  /** VFIO_DEVICE_BIND_IOMMUFD, iommufd's side, of a served device. */
  bindServed(device: MappedDevice): ObjectId {
    return this.bindDevice({ port: this.#ports++, iommu: new ServedIommu(device, this.#lock), mdev: null });
  }
}
