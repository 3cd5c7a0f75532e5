import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type {
  AttachedDevice,
  BitmapQuery,
  DataStream,
  DmaLoggingLimits,
  HandoverNotice,
  Iommufd,
  Machine,
  MigrationSupport,
  ResumingStream,
  SavingStream,
  TrackingFlags,
  Vcpus,
  VfioDevice,
} from "../../src/host/host.js";
import type { DeviceShape } from "../../src/host/shape.js";
import { iovaOf, MiB, PAGE_SIZE, type PageNumber } from "../../src/memory/address.js";
import { createGuestMemory, type GuestMemory } from "../../src/memory/guest-memory.js";
import { UapiError } from "../../src/uapi/errno.js";
import type { DeviceFeature, MigState } from "../../src/uapi/vfio.js";

/*
 * A small machine for failure tests: devices that write guest memory and their own log on a timer, real migration states
 * with data streams, and a witness who sees when two machines run at once or devices leave the lock-step.
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
  readonly memory?: number;
}

const RUNNING_STATES: readonly MigState[] = ["RUNNING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];
const P2P_STATES: readonly MigState[] = ["RUNNING_P2P", "PRE_COPY_P2P"];
/** Pages of the ring that a device writes. */
const RING = 64;

export function refuse(code: ConstructorParameters<typeof UapiError>[0], attempted: string): UapiError {
  return new UapiError(code, { syscall: "fake", attempted });
}

/** A device that writes a ring of pages, and logs them if asked to. */
export class FakeDevice implements VfioDevice {
  readonly id: string;
  readonly model = "fake";
  readonly regions = [];
  readonly irqs = [];
  /** How large it says that its state is. */
  stateBytes = 400;
  /** What a guest can tell it by. */
  facts: DeviceShape["facts"] = {};
  /** Each state that it was in, in order. */
  readonly states: MigState[];
  /** The device goes to ERROR when it is asked for this state. */
  failAt: MigState | null = null;
  /** The device never answers when it is asked for this state. */
  hangAt: MigState | null = null;
  /** Called with what it is told about the handover; what it throws is the answer. */
  onHandover: (notice: HandoverNotice, migration: string) => void = () => {};
  /** Reads of the log that fail from now on. */
  failReports = 0;
  resets = 0;
  /** Writes so far; page n of the ring holds the number of its last write. */
  counter = 0;
  readonly #machine: FakeMachine;
  readonly #ring: PageNumber;
  readonly #support: MigrationSupport;
  readonly #log = new Set<PageNumber>();
  readonly #tracked: boolean;
  #logging = false;

  constructor(
    id: string,
    ring: PageNumber,
    machine: FakeMachine,
    tracked: boolean,
    support: MigrationSupport,
    state: MigState,
  ) {
    this.id = id;
    this.#ring = ring;
    this.#machine = machine;
    this.#tracked = tracked;
    this.#support = support;
    this.states = [state];
  }

  get now(): MigState {
    return this.states[this.states.length - 1];
  }

  get logging(): boolean {
    return this.#logging;
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
      if (this.#logging) this.#log.add(page);
    }
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

  async regionRead(): Promise<never> {
    throw refuse("EINVAL", "read a region: it has none");
  }

  async regionWrite(): Promise<never> {
    throw refuse("EINVAL", "write a region: it has none");
  }

  async shape(): Promise<DeviceShape> {
    const { model, regions, irqs, facts } = this;
    return { version: 1, model, stateVersion: 1, regions, irqs, config: null, facts };
  }
  async bind(): Promise<never> {
    throw refuse("EINVAL", "bind again");
  }
  async attach(pt: number): Promise<number> {
    return pt;
  }
  async detach(): Promise<void> {}

  async announceHandover(notice: HandoverNotice, migration: string): Promise<void> {
    this.onHandover(notice, migration);
  }

  async reset(): Promise<void> {
    this.resets++;
    this.#logging = false;
    this.states.push("RUNNING");
  }

  async supports(feature: DeviceFeature): Promise<boolean> {
    return !feature.startsWith("DMA_LOGGING") || this.#tracked;
  }
  async migration(): Promise<MigrationSupport> {
    return this.#support;
  }
  async trackingFlags(): Promise<TrackingFlags> {
    return { tracksInternally: this.#tracked, tracksThroughContainer: false };
  }
  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return this.#tracked ? { pageSizes: [PAGE_SIZE], maxRanges: 16, addressWidth: 52, readableWhen: "always" } : null;
  }
  async state(): Promise<MigState> {
    return this.now;
  }

  async setState(next: MigState): Promise<DataStream | null> {
    if (this.hangAt === next) await new Promise(() => {});
    if (this.failAt === next) {
      this.failAt = null;
      this.states.push("ERROR");
      throw refuse("EIO", `take ${this.id} to ${next}`);
    }
    const from = this.now;
    if (from === "ERROR") throw refuse("EIO", `take ${this.id} out of ERROR`);
    this.#machine.witnessState(this, next);
    this.states.push(next);
    const saving = (state: MigState) => state.startsWith("PRE_COPY") || state === "STOP_COPY";
    if (saving(next) && !saving(from)) return this.#savingStream();
    if (next === "RESUMING") return this.#resumingStream();
    if (from === "RESUMING" && this.#received !== null) {
      const text = new TextDecoder().decode(this.#received).replace(/^i+/, "");
      if (!/^\d+;$/.test(text)) {
        this.states.push("ERROR");
        throw refuse("EINVAL", `load the state of ${this.id}`);
      }
      this.counter = Number.parseInt(text, 10);
    }
    return null;
  }
  #received: Uint8Array | null = null;

  #savingStream(): SavingStream {
    const initial = new Uint8Array(300).fill(105);
    let at = 0;
    let final: Uint8Array | null = null;
    return {
      direction: "saving",
      read: async (bytes) => {
        if (at < initial.length) {
          const piece = initial.subarray(at, at + bytes);
          at += piece.length;
          return piece;
        }
        if (this.now !== "STOP_COPY") throw refuse("ENOMSG", "read on in PRE_COPY");
        final ??= new TextEncoder().encode(`${this.counter};`);
        const piece = final.subarray(0, 2);
        final = final.subarray(piece.length);
        return piece;
      },
      precopyInfo: async () => ({ initialBytes: initial.length - at, dirtyBytes: 0, reinit: false }),
      [Symbol.asyncDispose]: async () => {},
    };
  }

  #resumingStream(): ResumingStream {
    this.#received = new Uint8Array(0);
    return {
      direction: "resuming",
      write: async (data) => {
        const before = this.#received ?? new Uint8Array(0);
        const joined = new Uint8Array(before.length + data.length);
        joined.set(before);
        joined.set(data, before.length);
        this.#received = joined;
      },
      [Symbol.asyncDispose]: async () => {},
    };
  }

  async dataSize(): Promise<number> {
    return this.stateBytes;
  }
  async enablePrecopyInfoV2(): Promise<void> {}

  async startDmaLogging({ pageSize }: { pageSize: number }): Promise<number> {
    if (!this.#tracked) throw refuse("ENOTTY", "start logging");
    if (this.#logging) throw refuse("EINVAL", "start logging twice");
    this.#logging = true;
    this.#log.clear();
    return pageSize;
  }

  async reportDmaLogging({ iova, length, into }: BitmapQuery): Promise<void> {
    if (this.failReports > 0) {
      this.failReports--;
      throw refuse("EIO", `read the log of ${this.id}`);
    }
    if (!this.#logging) throw refuse("EINVAL", "report without logging");
    for (const page of this.#log) {
      const at = iovaOf(page);
      if (at < iova || at >= iova + length) continue;
      into.set(Number((at - iova) / BigInt(PAGE_SIZE)));
      this.#log.delete(page);
    }
  }

  async stopDmaLogging(): Promise<void> {
    if (!this.#logging) throw refuse("EINVAL", "stop logging");
    this.#logging = false;
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** vCPUs that write one page each tick, with KVM's log. */
class FakeVcpus implements Vcpus {
  readonly count = 1;
  paused: boolean;
  counter = 0;
  readonly #machine: FakeMachine;
  readonly #log = new Set<PageNumber>();
  #logging = false;

  constructor(machine: FakeMachine, running: boolean) {
    this.#machine = machine;
    this.paused = !running;
  }

  get logging(): boolean {
    return this.#logging;
  }

  tick(): void {
    if (this.paused) return;
    this.counter++;
    this.#machine.store(VCPU_PAGE, this.counter);
    if (this.#logging) this.#log.add(VCPU_PAGE);
  }

  async pause(): Promise<void> {
    this.paused = true;
  }
  async resume(): Promise<void> {
    this.paused = false;
    this.#machine.witness.started(this.#machine.name);
  }
  async saveState(): Promise<Uint8Array> {
    return new TextEncoder().encode(String(this.counter));
  }
  async loadState(state: Uint8Array): Promise<void> {
    this.counter = Number(new TextDecoder().decode(state));
  }
  async startDirtyLog(): Promise<void> {
    this.#logging = true;
    this.#log.clear();
  }
  async readAndClearDirtyLog({ firstPage, pages, into }: { firstPage: number; pages: number; into: DirtyBitmap }) {
    for (const page of this.#log) {
      if (page < firstPage || page >= firstPage + pages) continue;
      into.set(page - firstPage);
      this.#log.delete(page);
    }
  }
  async stopDirtyLog(): Promise<void> {
    this.#logging = false;
  }
}
const VCPU_PAGE = 768;

/** The machine. It ticks by itself until it is disposed. */
export class FakeMachine implements Machine {
  readonly name: string;
  readonly witness: Witness;
  readonly memory: GuestMemory;
  readonly devices: readonly AttachedDevice[];
  readonly fakes: readonly FakeDevice[];
  readonly vcpus: FakeVcpus;
  readonly unreachable = new Set<string>();
  disposed = false;
  readonly #timer: NodeJS.Timeout;

  constructor(options: FakeOptions) {
    const { name, witness, devices = ["dev0", "dev1"], untracked = [], running = false } = options;
    const support = options.support ?? { stopCopy: true, p2p: true, preCopy: true };
    this.name = name;
    this.witness = witness;
    this.memory = createGuestMemory(options.memory ?? 4 * MiB);
    this.vcpus = new FakeVcpus(this, running);
    this.fakes = devices.map(
      (id, i) =>
        new FakeDevice(id, 512 + i * RING, this, !untracked.includes(id), support, running ? "RUNNING" : "STOP"),
    );
    this.devices = this.fakes.map((vfio, i) => ({
      id: vfio.id,
      model: vfio.model,
      vfio,
      iommufd: noIommufd,
      deviceId: i + 1,
      ioas: 1000,
      mdev: false,
    }));
    if (running) witness.started(name);
    this.#timer = setInterval(() => {
      for (const device of this.fakes) device.tick(options.pagesPerTick ?? 2);
      this.vcpus.tick();
    }, 1);
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
  witnessState(device: FakeDevice, next: MigState): void {
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
      this.fakes.every(({ now, logging }) => now === "RUNNING" && !logging)
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

const unsupported = async (): Promise<never> => {
  throw refuse("EOPNOTSUPP", "use the IOMMU");
};

/** An iommufd whose IOMMU can't track: its devices have logs of their own, or nothing. */
const noIommufd: Iommufd = {
  allocIoas: unsupported,
  iovaRanges: unsupported,
  allowIovas: unsupported,
  map: unsupported,
  mapFile: unsupported,
  copy: unsupported,
  unmap: unsupported,
  setOption: unsupported,
  getOption: unsupported,
  hwInfo: async () => ({ dirtyTracking: false, type: "none", pageSizes: [], data: new Uint8Array(0) }),
  allocHwpt: async () => 2000,
  allocEmulatedIommu: unsupported,
  setDirtyTracking: unsupported,
  getDirtyBitmap: unsupported,
  createAccess: unsupported,
  destroy: async () => {},
  [Symbol.asyncDispose]: async () => {},
};
