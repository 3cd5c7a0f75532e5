import type { FakeSystem } from "../../../linux/fake-system.test.helper.js";
import { LinuxHost } from "../../../linux/host.js";
import { FakeIommufd } from "../../../tracking/fake-iommufd.test.helper.js";
import { type FakeDeviceOptions, FakeVfioDevice } from "../../../tracking/fake-machine.test.helper.js";
import { type ErrnoName, UapiError } from "../../../uapi/errno.js";

/** What a device of a fixture does when it is opened; one that is not named can't be. */
export type Behaviour = Omit<FakeDeviceOptions, "id"> | { readonly refusesBind: ErrnoName };

/** A LinuxHost over a fixture's trees, whose devices are scripted; and what was opened and closed, in order. */
export function fakeHost(
  system: FakeSystem,
  devices: Readonly<Record<string, Behaviour>>,
): { host: LinuxHost; log: string[] } {
  const log: string[] = [];
  const iommufds: FakeIommufd[] = [];
  const host = new LinuxHost({
    roots: system.roots,
    openers: {
      iommufd: async () => {
        log.push("open iommufd");
        const iommufd = new FakeIommufd();
        iommufds.push(iommufd);
        return Object.assign(iommufd, { [Symbol.asyncDispose]: once(() => log.push("close iommufd")) });
      },
      device: async ({ id, onClose }) => {
        log.push(`open ${id}`);
        const behaviour = devices[id];
        if (behaviour === undefined) throw new Error(`the test does not say how ${id} behaves`);
        const refuses = "refusesBind" in behaviour ? behaviour.refusesBind : null;
        const vfio = new FakeVfioDevice({ id, ...behaviour }, iommufds[iommufds.length - 1] ?? new FakeIommufd());
        return Object.assign(vfio, {
          bind: async () => {
            if (refuses !== null) throw refusal(refuses);
            return vfio.deviceId;
          },
          [Symbol.asyncDispose]: once(() => {
            log.push(`close ${id}`);
            onClose();
          }),
        });
      },
    },
  });
  return { host, log };
}

function refusal(code: ErrnoName): UapiError {
  return new UapiError(code, { syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: "bind" });
}

/** Closing twice does nothing the second time. */
function once(close: () => void): () => Promise<void> {
  let closed = false;
  return async () => {
    if (!closed) close();
    closed = true;
  };
}
