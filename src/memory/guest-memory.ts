import { UsageError } from "../errors.js";
import { GiB, KiB, MiB, PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "./address.js";
import { type Arena, createArena } from "./arena.js";

/**
 * The part of an arena that holds guest RAM; what lies above it, up to {@link RamArena.scratch}'s end, is for bitmaps
 * and staging, so that kernels reach them and the RAM in one address space. 3 GiB keeps the guest's low memory, which
 * ends there on a PC, in the first arena.
 */
export const RAM_PER_ARENA = 3 * GiB;

/** What each RAM arena has besides RAM: the round's bitmaps and the staging buffers of the channels. */
export const SCRATCH_BYTES = 64 * MiB;

/** A stretch of guest-physical addresses backed by memory. IOVAs are guest-physical addresses (no virtual IOMMU). */
export interface MemoryRegion {
  readonly name: string;
  /** First guest page: guest-physical address / 4096. */
  readonly firstPage: PageNumber;
  readonly pages: number;
  /** Index into {@link GuestMemory.arenas}. */
  readonly arena: number;
  /** The page in the arena that backs the first guest page. */
  readonly arenaPage: PageNumber;
  /** False for ROM: mapped read-only for devices, still migrated. */
  readonly writeable: boolean;
}

/** An arena of RAM and the stretch of scratch memory behind the RAM. */
export interface RamArena extends Arena {
  readonly ramPages: number;
  readonly scratch: { readonly offset: number; readonly bytes: number };
}

/** The memory of one guest: RAM arenas, and the guest-physical addresses that they back. */
export interface GuestMemory {
  readonly bytes: number;
  readonly arenas: readonly RamArena[];
  /** Sorted by `firstPage`, without overlaps. There are holes between them. */
  readonly regions: readonly MemoryRegion[];
}

/** The layout of guest-physical addresses: that of a PC, or that of the Arm `virt` machine of QEMU and others. */
export type Platform = "pc" | "virt";

/** What a `virt` machine has below its RAM, which starts at 1 GiB: 2 MiB of flash. */
const VIRT_FLASH = 2 * MiB;

/**
 * Lays a guest's memory out. A PC: RAM up to 640 KiB, the VGA hole, a read-only BIOS shadow from 768 KiB to 1 MiB, RAM
 * from there to 3 GiB, the PCI hole, and further RAM from 4 GiB upwards. A `virt` machine: read-only flash at 0, a hole
 * for devices (an SMMU's MSI window among them), RAM from 1 GiB upwards.
 * The holes matter: they are what dirty readers trip over.
 * @param bytes RAM, holes that fall into it included; from 4 MiB, a multiple of 64 KiB.
 * @throws UsageError `MEMORY_DOES_NOT_FIT`
 */
export function layoutRegions(bytes: number, platform: Platform = "pc"): MemoryRegion[] {
  if (!Number.isSafeInteger(bytes) || bytes < 4 * MiB || bytes % (64 * KiB) !== 0) {
    throw new UsageError(`guest memory of ${bytes} bytes is not possible`, {
      code: "MEMORY_DOES_NOT_FIT",
      remedy: "give at least 4M, in multiples of 64K",
    });
  }
  const region = (name: string, at: number, arena: number, from: number, to: number, writeable = true) => ({
    name,
    firstPage: at / PAGE_SIZE,
    pages: (to - from) / PAGE_SIZE,
    arena,
    arenaPage: from / PAGE_SIZE,
    writeable,
  });
  const low = Math.min(bytes, RAM_PER_ARENA);
  const regions =
    platform === "pc"
      ? [
          region("ram-640k", 0, 0, 0, 640 * KiB),
          region("bios", 768 * KiB, 0, 768 * KiB, 1 * MiB, false),
          region("ram-low", 1 * MiB, 0, 1 * MiB, low),
        ]
      : [region("flash", 0, 0, 0, VIRT_FLASH, false), region("ram-low", 1 * GiB, 0, VIRT_FLASH, low)];
  // Where the second arena's RAM begins: above the PCI hole, or right behind the first arena's.
  const high = platform === "pc" ? 4 * GiB : 1 * GiB + RAM_PER_ARENA - VIRT_FLASH;
  for (let done = low, arena = 1; done < bytes; arena++) {
    const size = Math.min(bytes - done, RAM_PER_ARENA);
    regions.push(region(`ram-high-${arena}`, high + (arena - 1) * RAM_PER_ARENA, arena, 0, size));
    done += size;
  }
  return regions;
}

/**
 * Reserves a guest's memory, all zero. The system commits a page when it is first written.
 * @param platform the layout of guest-physical addresses
 * @throws UsageError `MEMORY_DOES_NOT_FIT`
 */
export function createGuestMemory(bytes: number, platform: Platform = "pc"): GuestMemory {
  const regions = layoutRegions(bytes, platform);
  const arenas: RamArena[] = [];
  for (let left = bytes; left > 0; left -= RAM_PER_ARENA) {
    const ram = Math.min(left, RAM_PER_ARENA);
    arenas.push(ramArena(createArena(ram + SCRATCH_BYTES), ram));
  }
  return { bytes, arenas, regions };
}

/** Splits an arena into its RAM and its scratch part; for workers, which get the arena's memory posted. */
export function ramArena(arena: Arena, ramBytes: number): RamArena {
  return {
    ...arena,
    ramPages: ramBytes >>> PAGE_SHIFT,
    scratch: { offset: ramBytes, bytes: arena.bytes - ramBytes },
  };
}
