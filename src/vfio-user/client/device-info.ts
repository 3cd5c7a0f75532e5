import type { InfoTransport } from "../../host/device-info.js";
import { vfio_irq_info, vfio_region_info } from "../../uapi/vfio.js";
import { VFIO_USER_COMMAND, vfio_user_device_info } from "../../uapi/vfio-user.js";
import type { Caller } from "./connection.js";

/** Asks a server what its device is. */
export function infoByMessages(connection: Caller): InfoTransport {
  const { DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO } = VFIO_USER_COMMAND;
  return {
    async info() {
      const request = vfio_user_device_info.encode({ argsz: vfio_user_device_info.size });
      return vfio_user_device_info.decode(await connection.call(DEVICE_GET_INFO, "VFIO_USER_DEVICE_GET_INFO", request));
    },
    async region(index) {
      const request = vfio_region_info.encode({ argsz: vfio_region_info.size, index });
      const name = "VFIO_USER_DEVICE_GET_REGION_INFO";
      return vfio_region_info.decode(await connection.call(DEVICE_GET_REGION_INFO, name, request));
    },
    async irq(index) {
      const request = vfio_irq_info.encode({ argsz: vfio_irq_info.size, index });
      const name = "VFIO_USER_DEVICE_GET_IRQ_INFO";
      return vfio_irq_info.decode(await connection.call(DEVICE_GET_IRQ_INFO, name, request));
    },
  };
}
