import type { DeviceDescription } from "../host/description.js";
import type { PageSpan } from "./buffers.js";
import type { DeviceContext, ModelInfo } from "./model.js";
import { type ModelWiring, PciModel, pciRegions } from "./pci-model.js";
import { PAYLOAD_BYTES, STAMP_BYTES } from "./stamp.js";

type VgpuDescription = Extract<DeviceDescription, { model: "vgpu" }>;

/** Pages that it keeps pinned at a time: a frame's worth of command and result buffers. */
export const VGPU_WINDOW_PAGES = 64;

const IDLE_MS = 1;
const UNITS_PER_LOOK = 8;

/** A log computed from pins: pages of 4 KiB, as many ranges as fit a kernel page, any address. */
const PIN_LOG_LIMITS = { pageSizes: [4096], maxRanges: 256, addressWidth: 64, readableWhen: "always" } as const;

export function vgpuInfo({ sharedTracker, vram }: VgpuDescription): ModelInfo {
  return {
    model: "vgpu",
    stateVersion: 1,
    mdev: true,
    regions: pciRegions(vram),
    irqs: [{ index: 1, name: "msi", count: 1 }],
    migration: { stopCopy: true, p2p: true, preCopy: true },
    tracking: { tracksInternally: true, tracksThroughContainer: sharedTracker },
    dmaLogging: PIN_LOG_LIMITS,
    separatesP2p: false,
  };
}

/**
 * A vGPU, an mdev: its parent's driver pins the pages that it is about to write, and unpins them when it moves on. So
 * what it may have written is what was pinned. Its video memory lies behind BAR 2, where peers write.
 *
 * At most one window is pinned, or being pinned, at a time; the old one goes before the new one comes.
 */
export class Vgpu extends PciModel {
  #window: Window = { state: "none" };
  #windowsPinned = 0;
  #pinFaults = 0;
  #pattern = 1;

  constructor(description: VgpuDescription, wiring: ModelWiring) {
    const { id, load } = description;
    super(vgpuInfo(description), { vendor: 0x10de, device: 0x1eb8, classCode: 0x030200 }, wiring, {
      id,
      rate: load.rate,
      blockSlots: VGPU_WINDOW_PAGES,
    });
  }

  protected override work(budgetMs: number): number {
    const { dma } = this;
    dma.beginSlice();
    const until = performance.now() + budgetMs;
    for (let units = 1; dma.ring.slots > 0; units++) {
      const first = dma.nextSlot - (dma.nextSlot % dma.ring.blockSlots);
      const window = this.#window;
      if (window.state === "moving") return IDLE_MS;
      if (window.state !== "pinned" || window.first !== first) {
        if (!dma.ready) return dma.wait(IDLE_MS);
        this.#move(first, dma.ring.blockOf(first), window.state === "pinned" ? window.runs : []);
        return IDLE_MS;
      }
      this.#render();
      if (!dma.write(PAYLOAD_BYTES)) {
        // Unpinned behind our back, by an unmap: pin again.
        if (dma.lastFault === "not-pinned") this.#window = { state: "none" };
        return dma.wait(IDLE_MS);
      }
      if (units % UNITS_PER_LOOK === 0 && performance.now() > until) return 0;
    }
    return IDLE_MS;
  }

  override reset(): void {
    super.reset();
    const window = this.#window;
    if (window.state === "pinned") this.#move(0, [], window.runs);
  }

  override counters(): Record<string, number> {
    return { ...super.counters(), windowsPinned: this.#windowsPinned, pinFaults: this.#pinFaults };
  }

  /** Unpins the old window and pins the next one; an empty next one just unpins. */
  #move(first: number, next: readonly PageSpan[], old: readonly PageSpan[]): void {
    this.#window = { state: "moving" };
    void moveWindow(this.context, next, old).then((pinned) => {
      this.#window = pinned && next.length > 0 ? { state: "pinned", first, runs: next } : { state: "none" };
      if (!pinned) this.#pinFaults++;
      else if (next.length > 0) this.#windowsPinned++;
    });
  }

  /** Makes up a payload: cheap, and different in every unit. */
  #render(): void {
    const words = new Int32Array(this.dma.staging.buffer, STAMP_BYTES);
    for (let i = 0; i < words.length; i += 16) {
      this.#pattern = (Math.imul(this.#pattern, 1664525) + 1013904223) | 0;
      words[i] = this.#pattern;
    }
  }
}

type Window =
  | { readonly state: "none" | "moving" }
  | { readonly state: "pinned"; readonly first: number; readonly runs: readonly PageSpan[] };

/** True if all of the next window is pinned; where a part can't be, none of it is. */
async function moveWindow(
  context: DeviceContext,
  next: readonly PageSpan[],
  old: readonly PageSpan[],
): Promise<boolean> {
  const pinned: PageSpan[] = [];
  try {
    for (const { firstPage, pages } of old) await context.unpin(firstPage, pages);
    for (const run of next) {
      if ((await context.pin(run.firstPage, run.pages)) === null) {
        pinned.push(run);
        continue;
      }
      for (const { firstPage, pages } of pinned) await context.unpin(firstPage, pages);
      return false;
    }
    return true;
  } catch (error) {
    context.fail(`pinning failed: ${error instanceof Error ? error.message : String(error)}`);
    return false;
  }
}
