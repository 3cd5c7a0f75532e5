import { LibvirtMonitor } from "./libvirt-monitor.js";
import type { MonitorPlace } from "./monitor.js";
import { Qemu } from "./qemu.js";
import { SocketMonitor } from "./socket-monitor.js";

/** Reaches the QEMU whose monitor is there. @throws as {@link SocketMonitor.open} and {@link LibvirtMonitor.open} do */
export async function openQemu(place: MonitorPlace): Promise<Qemu> {
  return new Qemu("qmp" in place ? await SocketMonitor.open(place.qmp) : await LibvirtMonitor.open(place));
}
