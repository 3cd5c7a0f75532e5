import { afterAll } from "vitest";
import { VFIO_PCI_REGION_INDEX } from "../../../src/uapi/vfio.js";
import { vfioConformance } from "../../conformance/vfio.js";
import { linux, openLinuxBench } from "../support/vfio-bench.js";
import { createMtty } from "../support/vfio-devices.js";

/** The scratch register of a 16550 UART: keeps what is written to it, and does nothing. */
const UART_SCR = 7;
const MARK = 0xa5;

const mttys = [createMtty(), createMtty()] as const;
afterAll(async () => {
  for (const mtty of mttys) await mtty[Symbol.asyncDispose]();
});

vfioConformance("mtty", {
  open: () => openLinuxBench(...mttys, "mtty"),
  mdev: true,
  migration: { stopCopy: true, p2p: true, preCopy: true },
  dmaLogging: true,
  mark: (device) => linux(device).regionWrite(VFIO_PCI_REGION_INDEX.BAR0, UART_SCR, Uint8Array.of(MARK)),
  isMarked: async (device) => {
    const [value] = await linux(device).regionRead(VFIO_PCI_REGION_INDEX.BAR0, UART_SCR, 1);
    return value === MARK;
  },
  // Nothing makes mtty fail.
  failToStop: null,
  afterBadState: "RESUMING",
  dataSizeIsExact: true,
});
