import { PAGE_SIZE } from "../../../src/memory/address.js";

/*
 * The memory of a fuzzed guest: regions as a VMM would map them, at the addresses where arithmetic goes wrong, and pages
 * between them in the file that nobody may write.
 */

export interface Region {
  /** IOVA pages. */
  readonly page: number;
  readonly pages: number;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** Where in the file it lies. */
  readonly filePage: number;
}

/** Pages of the file between two regions. */
const GUARD_PAGES = 2;

/** Pages that there are on the bus: 2^64 bytes. The topmost can't be mapped. */
export const BUS_PAGES = 2 ** 52;

const PLACES: readonly (Omit<Region, "filePage" | "readable" | "writeable"> & { access: "rw" | "r" | "w" })[] = [
  { page: 0x100, pages: 64, access: "rw" },
  // Its neighbour on the bus, but not in the file.
  { page: 0x140, pages: 32, access: "rw" },
  { page: 0x170, pages: 8, access: "r" },
  { page: 0x180, pages: 8, access: "w" },
  { page: 0, pages: 2, access: "rw" },
  // Across 4 GiB, across 2^53 bytes, and up to the end.
  { page: 2 ** 20 - 4, pages: 8, access: "rw" },
  { page: 2 ** 41 - 4, pages: 8, access: "rw" },
  { page: BUS_PAGES - 17, pages: 16, access: "rw" },
];

let next = GUARD_PAGES;
export const REGIONS: readonly Region[] = PLACES.map(({ page, pages, access }) => {
  const filePage = next;
  next += pages + GUARD_PAGES;
  return { page, pages, readable: access !== "w", writeable: access !== "r", filePage };
});

export const FILE_BYTES = next * PAGE_SIZE;

/** Where the device's own memory is mapped, as memory of a peer would be: behind everything else that is near. */
export const BAR_PAGE = 0x1000;
