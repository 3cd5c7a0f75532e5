import type { ObjectId } from "../../host/host.js";
import { SoftwareIommufd } from "../../iommufd/iommufd.js";
import { Lock } from "../../threads/lock.js";
import type { MappedDevice } from "./dma-mappings.js";
import { ServedIommu } from "./served-iommu.js";

/**
 * The iommufd in front of devices behind vfio-user sockets. A mapping in an IOAS is VFIO_USER_DMA_MAP on every attached device.
 * This process is the IOMMU of the devices whose DMA goes by messages.
 *
 * Devices in other processes need no access objects, and there is no hardware page table: hwInfo() has the type `none`. It has
 * dirty tracking only for a device whose every write passes through this process.
 */
export class VfioUserIommufd extends SoftwareIommufd {
  readonly #lock = new Lock();
  #ports = 0;

  constructor() {
    super({ reaches: () => true, mdevs: null });
  }

  /** Binds a served device and returns its id: iommufd's side of VFIO_DEVICE_BIND_IOMMUFD. */
  bindServed(device: MappedDevice): ObjectId {
    return this.bindDevice({ port: this.#ports++, iommu: new ServedIommu(device, this.#lock), mdev: null });
  }
}
