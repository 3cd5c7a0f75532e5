import { createSocket, type Socket } from "node:dgram";

/** A NIC's receive ring: what arrives while it is full is dropped, as on a real one. */
const RING = 256;

/** The wire of an emulated NIC: a UDP socket on the loopback interface, and the ring that its datagrams wait in. */
export class DatagramQueue implements Disposable {
  received = 0;
  dropped = 0;
  /** False: the link is down, and what arrives is dropped. */
  accepting = true;
  #socket: Socket | undefined;
  readonly #ring: (Buffer | undefined)[] = new Array(RING);
  #head = 0;
  #count = 0;

  /** Binds to a free port of 127.0.0.1 and returns its number. */
  async open(): Promise<number> {
    const socket = createSocket({ type: "udp4", recvBufferSize: 1 << 20 });
    this.#socket = socket;
    socket.on("message", (datagram) => this.#push(datagram));
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.bind({ address: "127.0.0.1", port: 0, exclusive: true }, resolve);
    });
    socket.removeAllListeners("error");
    // A datagram that can't be received is a lost datagram: UDP promises no more.
    socket.on("error", () => this.dropped++);
    socket.unref();
    return socket.address().port;
  }

  /** The datagram that has waited longest. */
  shift(): Buffer | undefined {
    if (this.#count === 0) return undefined;
    const datagram = this.#ring[this.#head];
    this.#ring[this.#head] = undefined;
    this.#head = (this.#head + 1) % RING;
    this.#count--;
    return datagram;
  }

  /** Drops what waits. */
  clear(): void {
    while (this.shift() !== undefined) this.dropped++;
  }

  [Symbol.dispose](): void {
    this.#socket?.close();
    this.#socket = undefined;
  }

  #push(datagram: Buffer): void {
    this.received++;
    if (!this.accepting || this.#count === RING) {
      this.dropped++;
      return;
    }
    this.#ring[(this.#head + this.#count) % RING] = datagram;
    this.#count++;
  }
}
