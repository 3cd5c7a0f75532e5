import { migrationPath } from "../../src/devices/variant-driver/mig-state.js";
import type {
  AttachedDevice,
  DataStream,
  HandoverNotice,
  Machine,
  MigrationSupport,
  VfioDevice,
} from "../../src/host/host.js";
import type { ShapeFacts } from "../../src/host/shape.js";
import { MiB, PAGE_SIZE, type PageNumber } from "../../src/memory/address.js";
import type { GuestMemory } from "../../src/memory/guest-memory.js";
import type { MigState } from "../../src/uapi/vfio.js";
import type { FakeDevice } from "../support/fake-host/device.js";
import { FakeVcpus, fakeMachine } from "../support/fake-host/machine.js";

/*
 * A small machine for failure tests: a fake host's devices, which write guest memory and their own log on a timer, and a
 * witness who sees when two machines run at once or devices leave the lock-step.
 */

/** Sees all machines of a test. */
export class Witness {
  readonly violations: string[] = [];
  readonly #running = new Set<string>();

  started(machine: string): void {
    this.#running.add(machine);
    if (this.#running.size > 1) this.violations.push(`two machines run: ${[...this.#running].join(" and ")}`);
  }

  stopped(machine: string): void {
    this.#running.delete(machine);
  }

  get running(): readonly string[] {
    return [...this.#running];
  }
}

export interface FakeOptions {
  readonly name: string;
  readonly witness: Witness;
  readonly devices?: readonly string[];
  /** Devices without a tracker of their own. */
  readonly untracked?: readonly string[];
  readonly support?: MigrationSupport;
  /** Devices and vCPUs run from the start: a source. */
  readonly running?: boolean;
  /** Pages that each device writes every millisecond or so. */
  readonly pagesPerTick?: number;
}

const RUNNING_STATES: readonly MigState[] = ["RUNNING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];
const P2P_STATES: readonly MigState[] = ["RUNNING_P2P", "PRE_COPY_P2P"];
const ALL_STATES: MigrationSupport = { stopCopy: true, p2p: true, preCopy: true };
/** Pages of the ring that a device writes. */
const RING = 64;

/** The VfioDevice of a fake host, with work to do: it writes a ring of pages, and its state is how many it has written. */
export class WorkingDevice {
  readonly id: string;
  readonly vfio: FakeDevice;
  /** Each state that it was in, in order. */
  readonly states: MigState[];
  /** How large it says that its state is; null: as large as it is. */
  stateBytes: number | null = null;
  /** The device goes to ERROR when it is asked for this state. */
  failAt: MigState | null = null;
  /** The device never answers when it is asked for this state. */
  hangAt: MigState | null = null;
  /** Called with what it is told about the handover; what it throws is the answer. */
  onHandover: (notice: HandoverNotice, migration: string) => void = () => {};
  resets = 0;
  /** Writes so far; page n of the ring holds the number of its last write. */
  counter = 0;
  readonly #machine: FakeMachine;
  readonly #ring: PageNumber;
  readonly #support: MigrationSupport;

  /** @param vfio bound and attached, and in the state that it is to begin with */
  constructor(vfio: FakeDevice, ring: PageNumber, machine: FakeMachine, support: MigrationSupport, state: MigState) {
    this.id = vfio.id;
    this.vfio = vfio;
    this.#ring = ring;
    this.#machine = machine;
    this.#support = support;
    this.states = [state];
    const { setState, reset, dataSize } = vfio;
    Object.assign(vfio, {
      setState: (next: MigState) => this.#setState(next, setState),
      reset: async () => {
        await reset();
        this.resets++;
        this.states.push("RUNNING");
      },
      dataSize: async () => this.stateBytes ?? (await dataSize()),
      announceHandover: async (notice: HandoverNotice, migration: string) => this.onHandover(notice, migration),
    });
  }

  get now(): MigState {
    return this.states[this.states.length - 1];
  }

  /** What a guest can tell it by. */
  set facts(facts: ShapeFacts) {
    this.vfio.contents.facts = facts;
  }

  /** The pages that it writes. */
  get ring(): PageNumber[] {
    return Array.from({ length: RING }, (_, slot) => this.#ring + slot);
  }

  /** Writes pages, as its DMA engine would. */
  tick(pages: number): void {
    if (!RUNNING_STATES.includes(this.now)) return;
    for (let i = 0; i < pages; i++) {
      const page = this.#ring + (this.counter % RING);
      this.counter++;
      this.#machine.store(page, this.counter);
      this.vfio.dma(page);
    }
    this.vfio.contents.state = new Uint8Array(Float64Array.of(this.counter).buffer);
  }

  /** Slots of the ring whose page does not hold what was written there last. */
  wrongPages(): number {
    let wrong = 0;
    for (let slot = 0; slot < Math.min(RING, this.counter); slot++) {
      const last = this.counter - ((this.counter - 1 - slot) % RING);
      if (this.#machine.load(this.#ring + slot) !== last) wrong++;
    }
    return wrong;
  }

  async #setState(next: MigState, setState: VfioDevice["setState"]): Promise<DataStream | null> {
    if (this.hangAt === next) await new Promise(() => {});
    const last = migrationPath(this.now, next, this.#support)?.at(-1);
    if (this.failAt === next && last !== undefined) {
      this.failAt = null;
      this.vfio.failNext(last);
    } else this.#machine.witnessState(this, next);
    try {
      const stream = await setState(next);
      if (this.now === "RESUMING") [this.counter] = new Float64Array(this.vfio.contents.state.slice().buffer);
      this.states.push(next);
      return stream;
    } catch (error) {
      if ((await this.vfio.state()) === "ERROR") this.states.push("ERROR");
      throw error;
    }
  }
}

/** vCPUs that write one page each tick, with KVM's log. */
class WorkingVcpus extends FakeVcpus {
  paused: boolean;
  counter = 0;
  readonly #machine: FakeMachine;

  constructor(machine: FakeMachine, running: boolean) {
    super();
    this.#machine = machine;
    this.paused = !running;
  }

  tick(): void {
    if (this.paused) return;
    this.counter++;
    this.#machine.store(VCPU_PAGE, this.counter);
    this.write(VCPU_PAGE);
  }

  override async pause(): Promise<void> {
    this.paused = true;
  }
  override async resume(): Promise<void> {
    this.paused = false;
    this.#machine.witness.started(this.#machine.name);
  }
  override async saveState(): Promise<Uint8Array> {
    return new TextEncoder().encode(String(this.counter));
  }
  override async loadState(state: Uint8Array): Promise<void> {
    this.counter = Number(new TextDecoder().decode(state));
  }
}
const VCPU_PAGE = 768;

/** The machine. It ticks by itself until it is disposed. */
export class FakeMachine implements Machine {
  readonly name: string;
  readonly witness: Witness;
  readonly memory: GuestMemory;
  readonly devices: readonly AttachedDevice[];
  readonly fakes: readonly WorkingDevice[];
  readonly vcpus: WorkingVcpus;
  readonly unreachable = new Set<string>();
  disposed = false;
  readonly #timer: NodeJS.Timeout;

  private constructor(options: FakeOptions, memory: GuestMemory, devices: readonly AttachedDevice[]) {
    const { name, witness, running = false, support = ALL_STATES } = options;
    this.name = name;
    this.witness = witness;
    this.memory = memory;
    this.devices = devices;
    this.vcpus = new WorkingVcpus(this, running);
    this.fakes = devices.map(
      ({ vfio }, i) =>
        new WorkingDevice(vfio as FakeDevice, 512 + i * RING, this, support, running ? "RUNNING" : "STOP"),
    );
    if (running) witness.started(name);
    this.#timer = setInterval(() => {
      for (const device of this.fakes) device.tick(options.pagesPerTick ?? 2);
      this.vcpus.tick();
    }, 1);
  }

  static async create(options: FakeOptions): Promise<FakeMachine> {
    const { devices = ["dev0", "dev1"], untracked = [], running = false, support = ALL_STATES } = options;
    const { memory, devices: attached } = await fakeMachine(
      devices.map((id) => ({
        id,
        iommuTracks: false,
        migration: support,
        ...(untracked.includes(id) ? {} : { log: {} }),
      })),
      { bytes: 4 * MiB },
    );
    if (!running) for (const { vfio } of attached) await vfio.setState("STOP");
    return new FakeMachine(options, memory, attached);
  }

  store(page: PageNumber, value: number): void {
    // Guest pages above 1 MiB lie in the first arena, at their own number.
    this.memory.arenas[0].u32[(page * PAGE_SIZE) / 4 + (value % 1024)] = value;
    this.memory.arenas[0].u32[(page * PAGE_SIZE) / 4] = value;
  }
  load(page: PageNumber): number {
    return this.memory.arenas[0].u32[(page * PAGE_SIZE) / 4];
  }

  /** What all devices together must keep to. */
  witnessState(device: WorkingDevice, next: MigState): void {
    const others = this.fakes.filter((other) => other !== device && !this.unreachable.has(other.id));
    const { violations } = this.witness;
    const running = (state: MigState) => state === "RUNNING" || state === "PRE_COPY";
    if (P2P_STATES.includes(next) && running(device.now) && !this.vcpus.paused) {
      violations.push(`${device.id} was quiesced while the vCPUs ran`);
    }
    if (next === "STOP_COPY" && RUNNING_STATES.includes(device.now)) {
      for (const other of others) {
        if (running(other.now)) violations.push(`${device.id} was stopped while ${other.id} was in ${other.now}`);
      }
    }
    if (next === "RUNNING" && !running(device.now)) {
      for (const other of others) {
        if (other.now === "STOP" || other.now === "STOP_COPY") {
          violations.push(`${device.id} ran while ${other.id} was in ${other.now}`);
        }
      }
    }
    if (next === "STOP_COPY") this.witness.stopped(this.name);
  }

  mayP2p(initiator: string, target: string): boolean {
    return initiator !== target && !this.unreachable.has(target);
  }
  async setP2pReachable(device: string, reachable: boolean): Promise<void> {
    if (reachable) this.unreachable.delete(device);
    else this.unreachable.add(device);
  }

  /** The workload is whole: each ring holds the last writes, and the vCPUs' page the last count. */
  get whole(): boolean {
    const vcpus = this.vcpus.counter === 0 || this.load(VCPU_PAGE) === this.vcpus.counter;
    return vcpus && this.fakes.every((device) => device.wrongPages() === 0);
  }

  /** Everything runs, nothing is tracked. */
  get runsFreely(): boolean {
    return (
      !this.vcpus.paused &&
      !this.vcpus.logging &&
      this.unreachable.size === 0 &&
      this.fakes.every(({ now, vfio }) => now === "RUNNING" && !vfio.logging)
    );
  }

  /** The machine dies with its process. */
  kill(): void {
    clearInterval(this.#timer);
    this.disposed = true;
    this.vcpus.paused = true;
    this.witness.stopped(this.name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill();
  }
}
