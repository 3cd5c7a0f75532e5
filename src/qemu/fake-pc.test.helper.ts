import { FakeQemu } from "./qmp/fake-qemu.test.helper.js";

/*
 * For tests: a PC with a vfio-user device as QEMU tells of it, and the ports by which its configuration space is reached.
 */

const ID = 0x4e56_1234;
const CLASS = 0x0108_0201;
const MSIX = 0x50;
const EXP = 0x60;
const VECTORS = 3;

/** A PCI function with one 64-bit BAR, MSI-X and PCI Express. */
export class FakeFunction {
  readonly config = new Uint32Array(64);
  readonly table = new Uint32Array(VECTORS * 4);
  /** Configuration writes, in order. */
  readonly writes: [number, number][] = [];
  /** Bits that a write changes. */
  readonly #writeable = new Map<number, number>([
    [0x04, 0x0546],
    [0x10, 0xffff_c000],
    [0x14, 0xffff_ffff],
    [0x3c, 0xff],
    [MSIX, 0xc000_0000],
    [EXP + 8, 0x7fff],
  ]);

  constructor() {
    this.config[0] = ID;
    this.config[1] = 0x10_0000;
    this.config[2] = CLASS;
    this.config[4] = 0x4;
    this.config[0x34 / 4] = MSIX;
    this.config[MSIX / 4] = 0x11 | (EXP << 8) | ((VECTORS - 1) << 16);
    this.config[MSIX / 4 + 1] = 0x2000;
    this.config[EXP / 4] = 0x10 | (0x2 << 16);
  }

  /** What a driver has made of it: BAR, memory and bus mastering on, interrupts set up. */
  drive(): this {
    for (const [offset, value] of [
      [0x10, 0xfeb0_4004],
      [0x14, 0x1],
      [0x3c, 0x0b],
      [EXP + 8, 0x2810],
      [MSIX, 0x8000_0000],
      [0x04, 0x406],
    ]) {
      this.write(offset, value);
    }
    this.table.set(Array.from({ length: VECTORS * 4 }, (_, i) => 0xfee0_0000 + i));
    this.writes.length = 0;
    return this;
  }

  write(offset: number, value: number): void {
    this.writes.push([offset, value >>> 0]);
    const mask = this.#writeable.get(offset) ?? 0;
    this.config[offset / 4] = (this.config[offset / 4] & ~mask) | (value & mask);
  }

  get tableAddress(): bigint {
    return (BigInt(this.config[5]) << 32n) + BigInt((this.config[4] & ~0xf) >>> 0) + 0x2000n;
  }

  get canDma(): boolean {
    return (this.config[1] & 0x4) !== 0;
  }
}

/** A machine whose root bus has a root port, behind which the function is. */
export class FakePc implements AsyncDisposable {
  readonly qemu: FakeQemu;
  readonly function = new FakeFunction();
  latch = 0x8000_f8a0;
  /** Where configuration space is in memory (ECAM); null: it is not. */
  window: bigint | null = null;
  /** The bus behind the root port, as the guest has numbered it. */
  secondary = 3;

  private constructor(qemu: FakeQemu) {
    this.qemu = qemu;
    const peripherals = [
      { name: "type", type: "string" },
      { name: "disk", type: "child<vfio-user-pci>" },
      { name: "port1", type: "child<pcie-root-port>" },
    ];
    const properties: Record<string, unknown> = {
      "/machine/peripheral/disk addr": 0,
      "/machine/peripheral/disk parent_bus": "/machine/peripheral/port1/port1",
      "/machine/peripheral/port1 addr": 8,
      "/machine/peripheral/port1 parent_bus": "/machine/q35/pcie.0",
    };
    qemu.answer("query-version", { qemu: { major: 11, minor: 1, micro: 3 }, package: "fake" });
    qemu.answer("query-status", { running: true, status: "running" });
    qemu.answer("query-migrate", {});
    qemu.answer("query-memory-size-summary", { "base-memory": 2 ** 28, "plugged-memory": 0 });
    qemu.answer("qom-list-types", [{ name: "vfio-user-pci" }]);
    qemu.answers.set("qom-list", ({ arguments: { path } }) => {
      if (path === "/machine/peripheral") return peripherals;
      if (path === "/machine/peripheral-anon") return [{ name: "type", type: "string" }];
      return [
        { name: "socket", type: "SocketAddress" },
        { name: "vfio-user:\\x2frun\\x2fa\\x5bb\\x5d base BAR 0[0]", type: "child<memory-region>" },
      ];
    });
    qemu.answers.set("qom-get", ({ arguments: { path, property } }) => {
      const value =
        properties[`${path} ${property}`] ?? (path === "/machine/q35" ? this.#ecam[String(property)] : undefined);
      return value ?? { error: { class: "GenericError", desc: `Property '${property}' not found` } };
    });
    qemu.answers.set("query-pci", () => [
      {
        bus: 0,
        devices: [
          {
            bus: 0,
            slot: 1,
            function: 0,
            qdev_id: "port1",
            id: { vendor: 1, device: 2 },
            regions: [],
            pci_bridge: { bus: { secondary: this.secondary }, devices: [] },
          },
        ],
      },
    ]);
    qemu.answers.set("human-monitor-command", ({ arguments: its }) => this.human(String(its["command-line"])));
  }

  static async start(): Promise<FakePc> {
    return new FakePc(await FakeQemu.start());
  }

  /** A command of the monitor for people. */
  human(line: string): string {
    const [command, format, place, value] = line.split(" ");
    const address = BigInt(place);
    if (command === "xp") {
      const memory = this.#memoryAt(address);
      if (memory === null) return "Cannot access memory\r\n";
      const dwords = Number(/\d+/.exec(format)?.[0]);
      return Array.from({ length: Math.ceil(dwords / 4) }, (_, row) => {
        const words = Array.from(memory.subarray(row * 4, row * 4 + 4), (word) => `0x${hex8(word)}`);
        return `${(address + BigInt(row * 16)).toString(16).padStart(16, "0")}: ${words.join(" ")}\r\n`;
      }).join("");
    }
    if (command === "o") {
      if (address === 0xcf8n) this.latch = Number(value);
      else if (this.#selects) this.function.write(this.latch & 0xfc, Number(value));
      return "";
    }
    const read =
      address === 0xcf8n ? this.latch : this.#selects ? this.function.config[(this.latch & 0xfc) / 4] : 0xffff_ffff;
    return `portl[0x0${address.toString(16)}] = 0x${hex8(read)}\r\n`;
  }

  get #selects(): boolean {
    return (this.latch & 0x7fff_ff00) === this.secondary << 16;
  }

  /** Properties of a Q35's host bridge; another machine has none. */
  get #ecam(): Readonly<Record<string, number>> {
    return this.window === null ? {} : { MCFG: Number(this.window), mcfg_size: 2 ** 28 };
  }

  #memoryAt(address: bigint): Uint32Array | null {
    if (address === this.function.tableAddress) return this.function.table;
    if (this.window === null) return null;
    if (address === this.window) return Uint32Array.of(0x29c0_8086);
    return address === this.window + BigInt(this.secondary << 20) ? this.function.config : null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.qemu[Symbol.asyncDispose]();
  }
}

function hex8(value: number): string {
  return (value >>> 0).toString(16).padStart(8, "0");
}
