import { afterAll } from "vitest";
import { VFIO_PCI_REGION_INDEX } from "../../../src/uapi/vfio.js";
import { vfioConformance } from "../../conformance/vfio.js";
import { linux, openLinuxBench } from "../support/vfio-bench.js";
import { createMtty } from "../support/vfio-devices.js";

/** The scratch register of a 16550 UART: keeps what is written to it, and does nothing. */
const UART_SCR = 7;
/** A new one for each mark: a register keeps what an earlier test left in it. */
let mark = 0;

const mttys = [createMtty(), createMtty()] as const;
afterAll(async () => {
  for (const mtty of mttys) await mtty[Symbol.asyncDispose]();
});

vfioConformance("mtty", {
  open: () => openLinuxBench(...mttys, "mtty"),
  mdev: true,
  migration: { stopCopy: true, p2p: true, preCopy: true },
  dmaLogging: true,
  mark: (device) => {
    mark = (mark + 1) % 256;
    return linux(device).regionWrite(VFIO_PCI_REGION_INDEX.BAR0, UART_SCR, Uint8Array.of(mark));
  },
  isMarked: async (device) => {
    const [value] = await linux(device).regionRead(VFIO_PCI_REGION_INDEX.BAR0, UART_SCR, 1);
    return value === mark;
  },
  // Nothing makes mtty fail.
  failToStop: null,
  resets: true,
  twins: true,
  afterBadState: "RESUMING",
  dataSizeIsExact: true,
});
