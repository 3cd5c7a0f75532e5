import type { InfoTransport } from "../../host/device-info.js";
import type { OpenFile } from "../../sys/open-file.js";
import { isErrno } from "../../uapi/errno.js";
import type { IoctlRequest } from "../../uapi/ioctl.js";
import {
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  vfio_device_info,
  vfio_irq_info,
  vfio_region_info,
} from "../../uapi/vfio.js";

/** Asks a bound device what it is, by ioctls. */
export function infoByIoctls(file: OpenFile): InfoTransport {
  /** EINVAL: an index that this device does not have. */
  const ask = (request: IoctlRequest, argument: Uint8Array): Uint8Array | null => {
    try {
      file.ioctl(request, argument, () => `ask what '${file.name}' is`);
      return argument;
    } catch (error) {
      if (isErrno(error, "EINVAL")) return null;
      throw error;
    }
  };
  return {
    async info() {
      const argument = vfio_device_info.encode({ argsz: vfio_device_info.size });
      file.ioctl(VFIO_DEVICE_GET_INFO, argument, () => `ask what '${file.name}' is`);
      return vfio_device_info.decode(argument);
    },
    async region(index) {
      const argument = vfio_region_info.encode({ argsz: vfio_region_info.size, index });
      const answer = ask(VFIO_DEVICE_GET_REGION_INFO, argument);
      return answer && vfio_region_info.decode(answer);
    },
    async irq(index) {
      const argument = vfio_irq_info.encode({ argsz: vfio_irq_info.size, index });
      const answer = ask(VFIO_DEVICE_GET_IRQ_INFO, argument);
      return answer && vfio_irq_info.decode(answer);
    },
  };
}
