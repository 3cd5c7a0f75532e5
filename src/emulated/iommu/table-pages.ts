import type { IopteKernels } from "../../kernels/ioptes.js";
import type { Arena } from "../../memory/arena.js";
import { UapiError } from "../../uapi/errno.js";
import { ENTRIES, TABLE_BYTES } from "./format.js";

/**
 * The 4 KiB pages of an arena that page tables are made of. Page 0 is never given out: offset 0 means "no table".
 * A TiB mapped at 4 KiB takes 2 GiB of them, so an arena, which ends at 4 GiB, holds the tables of just under 2 TiB.
 */
export class TablePages {
  readonly arena: Arena;
  /** Present entries of each table, by page of the arena: a table that has none left is freed. */
  readonly used: Uint16Array;
  readonly #kernels: IopteKernels;
  readonly #freed: number[] = [];
  #fresh: number;

  /** @param first byte offset of the first page to give out; above 0, a multiple of 4096 */
  constructor(arena: Arena, kernels: IopteKernels, first: number) {
    this.arena = arena;
    this.#kernels = kernels;
    this.used = new Uint16Array(Math.floor(arena.bytes / TABLE_BYTES));
    this.#fresh = first;
  }

  /** Pages that can still be given out. */
  get available(): number {
    return this.#freed.length + Math.floor((this.arena.bytes - this.#fresh) / TABLE_BYTES);
  }

  /** A table with 512 empty entries: its byte offset. @throws UapiError ENOMEM when the arena is full */
  allocate(): number {
    const freed = this.#freed.pop();
    if (freed !== undefined) {
      this.#kernels.fillIoptes(freed, ENTRIES, 0, 0, 0);
      return freed;
    }
    const fresh = this.#fresh;
    if (fresh + TABLE_BYTES > this.arena.bytes) {
      throw new UapiError("ENOMEM", {
        syscall: "iommu_map",
        attempted: `take a page for a table from an arena of ${this.arena.bytes} bytes`,
        remedy: "map with larger pages, or give the IOMMU a larger arena: 2 GiB per TiB that is mapped at 4 KiB",
      });
    }
    this.#fresh += TABLE_BYTES;
    return fresh;
  }

  /** Takes a table back that no device can reach any more. */
  free(table: number): void {
    this.used[table / TABLE_BYTES] = 0;
    this.#freed.push(table);
  }
}
