import type { FakeDeviceOptions } from "../../../../test/support/fake-host/device.js";
import { FakeHost } from "../../../../test/support/fake-host/host.js";
import type { FakeSystem } from "../../../linux/fake-system.test.helper.js";
import { LinuxHost } from "../../../linux/host.js";
import { type ErrnoName, UapiError } from "../../../uapi/errno.js";

/** What a device of a fixture does when it is opened; one that is not named can't be. */
export type Behaviour = Omit<FakeDeviceOptions, "id"> | { readonly refusesBind: ErrnoName };

/** A LinuxHost over a fixture's trees, whose devices are a fake host's; and what was opened and closed, in order. */
export function fakeHost(
  system: FakeSystem,
  devices: Readonly<Record<string, Behaviour>>,
): { host: LinuxHost; log: string[] } {
  const log: string[] = [];
  const fakes = new FakeHost(
    Object.entries(devices).map(([id, behaviour]) => ({ ...behaviour, id })),
    [],
  );
  const host = new LinuxHost({
    roots: system.roots,
    openers: {
      iommufd: async () => {
        log.push("open iommufd");
        return onClose(await fakes.openIommufd(), () => log.push("close iommufd"));
      },
      device: async ({ id, onClose: closed }) => {
        log.push(`open ${id}`);
        const behaviour = devices[id];
        if (behaviour === undefined) throw new Error(`the test does not say how ${id} behaves`);
        const vfio = onClose(await fakes.openDevice(id), () => {
          log.push(`close ${id}`);
          closed();
        });
        if (!("refusesBind" in behaviour)) return vfio;
        return Object.assign(vfio, { bind: () => Promise.reject(refusal(behaviour.refusesBind)) });
      },
    },
  });
  return { host, log };
}

function refusal(code: ErrnoName): UapiError {
  return new UapiError(code, { syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: "bind" });
}

/** Tells of the first time that something is closed. */
function onClose<T extends AsyncDisposable>(opened: T, tell: () => void): T {
  const close = opened[Symbol.asyncDispose].bind(opened);
  let closed = false;
  return Object.assign(opened, {
    [Symbol.asyncDispose]: async () => {
      await close();
      if (!closed) tell();
      closed = true;
    },
  });
}
