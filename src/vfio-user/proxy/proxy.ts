import type { DmaMode } from "../server/client-memory.js";
import { groupId } from "../server/listener.js";
import { type DeviceServer, startServer, type ThreadSockets } from "../server/server.js";

/** The options of {@link proxyDevice}. */
export interface ProxyDeviceOptions {
  /** The path of the socket of the server that has the device. */
  readonly server: string;
  /** The path of the proxy's socket. It must be free, or hold a socket without a listener. The same holds for its control socket. */
  readonly path: string;
  /** The device's name in messages. Default: `device`. */
  readonly id?: string;
  /**
   * `messages`: the server is given none of its client's memory, and sends a message for each access. Its writes are then tracked
   * here, whatever it can itself. Default: auto.
   */
  readonly dma?: DmaMode;
  /** True: another device's state will be loaded into this one. Default: false. */
  readonly incoming?: boolean;
  /** The name or number of a group whose members may connect as well. Default: only this user may. */
  readonly socketGroup?: string;
  /** Receives the lines of the proxy's log. Default: they are dropped. */
  readonly log?: (line: string) => void;
}

/** What a proxy's thread is given. */
export interface ProxyThreadData extends ThreadSockets {
  readonly server: string;
  readonly id: string;
  readonly dma: DmaMode;
  readonly incoming: boolean;
}

/**
 * Stands between clients and a device's vfio-user server, of any program, on a thread of its own, and offers the control
 * connection of Dirtmap's own servers. Resolves when it accepts clients.
 * @throws UsageError for a path at which no socket can be: `BAD_SOCKET_PATH`, `SOCKET_IN_USE`, `UNSAFE_FOLDER`,
 * `BAD_SOCKET_GROUP`; DirtmapError for a server that can't be reached
 */
export async function proxyDevice(options: ProxyDeviceOptions): Promise<DeviceServer> {
  const { server, path, id = "device", dma = "auto", incoming = false, socketGroup, log = () => {} } = options;
  const access = { path, log, ...(socketGroup === undefined ? {} : { group: groupId(socketGroup) }) };
  return startServer(new URL("./proxy-thread.js", import.meta.url), { server, id, dma, incoming }, access);
}
