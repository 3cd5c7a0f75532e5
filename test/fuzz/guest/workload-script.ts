import { MLX5_MAX_QUEUES, MLX5_QUEUES_REGISTER } from "../../../src/devices/mlx5.js";
import { BUFFER_ENTRY_BYTES, MAX_BUFFERS, REGISTER, STATUS } from "../../../src/devices/pci-model.js";
import { PAGE_SIZE } from "../../../src/memory/address.js";
import type { GuestOperation } from "./operation.js";
import { bar0, busMaster, type Script, type Source } from "./script.js";

/** The driver of the models whose buffers are named in a table: docs/vfio-user.md. */
export class WorkloadScript implements Script {
  readonly #source: Source;

  constructor(source: Source) {
    this.#source = source;
  }

  forget(): void {}

  next(): GuestOperation[] {
    const { random } = this.#source;
    const s = this.#source;
    return random.weighted<() => GuestOperation[]>([
      [10, () => this.#program()],
      [4, () => [bar0(REGISTER.BUFFERS, s.u32(random.between(0, 4)))]],
      [4, () => [this.#entry(random.below(4))]],
      [2, () => [bar0(REGISTER.BUFFERS + random.below(4), Uint8Array.of(Number(s.twist(0, 8))))]],
      [2, () => [bar0(MLX5_QUEUES_REGISTER, s.u32(random.between(1, MLX5_MAX_QUEUES)))]],
      [2, () => [bar0(REGISTER.SCRATCH, s.u32(random.below(2 ** 31)))]],
      [1, () => [bar0(REGISTER.STATUS, s.u32(STATUS.RESET))]],
      [4, () => [busMaster()]],
    ])();
  }

  #program(): GuestOperation[] {
    const { random } = this.#source;
    const count = random.pick([0, 1, 1, 2, 3, 4, MAX_BUFFERS]);
    const table = Array.from({ length: Math.min(4, count) }, (_, index) => this.#entry(index));
    return [busMaster(), ...table, bar0(REGISTER.BUFFERS, this.#source.u32(count))];
  }

  #entry(index: number): GuestOperation {
    const { random } = this.#source;
    const pages = random.pick([1, 1, 2, 3, 8]);
    const address = random.chance(80) ? BigInt(this.#source.pages(pages)) : this.#source.address() & ~0xfffn;
    const entry = new Uint8Array(BUFFER_ENTRY_BYTES);
    entry.set(this.#source.u64(address));
    entry.set(this.#source.u64(pages * PAGE_SIZE), 8);
    return bar0(REGISTER.BUFFER_TABLE + index * BUFFER_ENTRY_BYTES, entry);
  }
}
